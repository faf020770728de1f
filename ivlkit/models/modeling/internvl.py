"""transformers' InternVL with what the released models need beside it: a thin subclass.

Added: `ps_version` v1, the frozen vision tower in eval mode under no_grad, tiles encoded in chunks, features that were
computed before (a chat's earlier pictures, training's earlier epochs), and a head of the caller's (training's loss).
"""

import torch
from torch.nn import functional as F
from transformers import InternVLForConditionalGeneration
from transformers.models.internvl.modeling_internvl import InternVLCausalLMOutputWithPast

TOWER_LAYERS = "^model.vision_tower.encoder.layer."
TILES_A_CHUNK = 64  # bounds the tower's memory when it is frozen


def count_calls(tiles):
    """Calls of a frozen tower for so many tiles: 2 for 65."""
    return -(-tiles // TILES_A_CHUNK)


class ReleasedInternVLForConditionalGeneration(InternVLForConditionalGeneration):
    """InternVL 1.5 on transformers' own layers. Inputs: input_ids [B, L] and pixel_values [T, 3, S, S]."""

    sees_all_tiles = False  # in one call of the tower, whose memory `streaming` then bounds
    # Of a call of the tower, with blank tiles if need be. A compiled one needs two: torch treats a size of one as a
    # constant.
    least_tiles = 1

    def __init__(self, config):
        super().__init__(config)
        if not config.vision_config.num_hidden_layers:  # a tower whose layers are loaded apart: `load`
            self._keys_to_ignore_on_load_unexpected = {*self._keys_to_ignore_on_load_unexpected, TOWER_LAYERS}

    def train(self, mode=True):
        """Train mode for the parts that train: a frozen tower stays in eval mode, so nothing in it is dropped."""
        super().train(mode)
        if self.vision_is_frozen:
            self.model.vision_tower.eval()
        return self

    @property
    def vision_is_frozen(self):
        """Whether no parameter of the vision tower trains."""
        return not any(parameter.requires_grad for parameter in self.model.vision_tower.parameters())

    @property
    def projector_is_frozen(self):
        """Whether no parameter of the projector trains."""
        return not any(parameter.requires_grad for parameter in self.model.multi_modal_projector.parameters())

    def encode_tiles(self, pixel_values, *, calls=1, complete=None):
        """Pixel values [T, 3, S, S] → features [T, 256, H] in the language model's space.

        Args:
            calls: how often a frozen tower runs at least, on blank tiles if need be (another rank's number); 0: never.
            complete: a function that puts what `see` gave in earlier epochs beside what it gives now (None: no call).
        """
        seen = self.see(pixel_values, calls=calls) if calls else None
        seen = complete(seen) if complete else seen
        return seen if self.projector_is_frozen else self.model.multi_modal_projector(seen)

    def see(self, pixel_values, *, calls=1):
        """Pixel values [T, 3, S, S] → features [T, 256, H], or [T, 256, 4C] where the projector trains, left to it.

        Of a frozen tower this is the same in every epoch. No tiles are seen as a blank one, and none is given.
        """
        pixel_values = pixel_values.to(self.model.vision_tower.embeddings.cls_token.dtype)
        frozen, count = self.vision_is_frozen, len(pixel_values)
        in_chunks = frozen and not self.sees_all_tiles
        calls = calls if in_chunks else 1
        chunks = pixel_values.split(TILES_A_CHUNK if in_chunks else max(1, count))
        if not count or len(chunks) < calls:
            blank = pixel_values.new_zeros(max(0, calls - count), *pixel_values.shape[1:])
            chunks = torch.cat([pixel_values, blank]).tensor_split(calls)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            patches = torch.cat([self._call_tower(chunk) for chunk in chunks])
        return self._project(patches[: max(1, count)])[:count]

    def _call_tower(self, pixel_values):
        """Vision tower without CLS: [T, 3, S, S] → [T, P, C], P = (S / 14)²."""
        count, layer = len(pixel_values), self.config.vision_feature_layer
        if count < self.least_tiles:
            pixel_values = F.pad(pixel_values, (*(0,) * 7, self.least_tiles - count))
        outputs = self.model.vision_tower(pixel_values=pixel_values, output_hidden_states=layer != -1)
        hidden = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
        return hidden[:count, 1:]

    def _project(self, patches):
        """Pixel shuffle, and the projector if it is frozen: [T, P, C] → [T, P/4, 4C] → [T, P/4, H]."""
        count, num_patches, _ = patches.shape
        side = int(num_patches**0.5)
        grid = patches.reshape(count, side, side, -1)
        shuffled = self.model.pixel_shuffle(grid, scale_factor=self.config.downsample_ratio)
        if self.config.ps_version == "v1":  # the first release left rows and columns swapped
            shuffled = shuffled.transpose(1, 2)
        shuffled = shuffled.reshape(count, -1, shuffled.shape[-1])
        return self.model.multi_modal_projector(shuffled) if self.projector_is_frozen else shuffled

    def embed(self, input_ids, features):
        """Token embeddings [B, L, H] with the features [T, 256, H] in the places of the context tokens, in order.

        Raises: ValueError if their numbers differ.
        """
        embeds = self.get_input_embeddings()(input_ids)
        places = input_ids == self.config.image_token_id
        if int(places.sum()) != features.shape[0] * features.shape[1]:
            raise ValueError(f"{int(places.sum())} context tokens but features for {features.shape[0]} tiles")
        return embeds.masked_scatter(places.unsqueeze(-1), features.to(embeds.dtype))

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        inputs_embeds=None,
        logits_to_keep=0,
        loss_fn=None,
        tower_calls=1,
        complete=None,
        **kwargs,
    ):
        """As transformers' own; `loss_fn`, a function of (hidden states [B, L, H], lm_head), gives `loss`, no logits.

        `tower_calls` and `complete` are those of `encode_tiles`.

        `logits_to_keep` stands here by name because `generate` reads the signature: without it a batch of prompts
        makes the logits of all its tokens, 37 GiB for 64 prompts of the 2B.

        Pixel values of no tile ([0, 3, S, S]) mean that the tower and the projector run all the same, on a blank tile
        that changes nothing: on several GPUs a rank with text alone would keep the others waiting for its gradients.
        """
        if pixel_values is not None:
            features = self.encode_tiles(pixel_values, calls=tower_calls, complete=complete)
            input_ids, inputs_embeds = None, self.embed(input_ids, features)
        if loss_fn is None:
            return super().forward(
                input_ids=input_ids, inputs_embeds=inputs_embeds, logits_to_keep=logits_to_keep, **kwargs
            )
        outputs = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
        return InternVLCausalLMOutputWithPast(loss=loss_fn(outputs.last_hidden_state, self.lm_head))
