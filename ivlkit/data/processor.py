"""What one model reads: its tokenizer, template, system prompt and tile settings, and how it cuts pictures. No weights.

`models.processor.load_processor` makes one from a model's folder.
"""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import CheckpointError
from ..views import shown
from .rows.conversation import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, ConversationTemplate, render
from .rows.media import UPRIGHT_ON_WHITE, PictureRules
from .tiling import choose_grid, count_tiles, cut_tiles


@dataclass(frozen=True)
class Processor:
    """Turns pictures and text into what one model reads. All of it comes from the checkpoint."""

    folder: Path
    family: object  # the family's entry, `models.families`
    tokenizer: object  # a fast tokenizer
    template: ConversationTemplate
    system_message: str
    tile_px: int  # 448; nano 112
    num_image_token: int  # context tokens a tile: 256; nano 16
    max_tiles: int
    min_tiles: int
    use_thumbnail: bool
    dynamic: bool  # False: every picture is one stretched tile
    picture_rules: PictureRules = UPRIGHT_ON_WHITE  # config.json's `picture_rules`: "reference" reads as the reference

    @cached_property
    def fingerprint(self):
        """SHA-256 of all that decides how many tokens a row has."""
        said = [getattr(self, one.name) for one in fields(self) if one.name not in ("folder", "family", "tokenizer")]
        return hashlib.sha256(f"{self.tokenizer.backend_tokenizer.to_str()}{said!r}".encode()).hexdigest()

    @cached_property
    def splices(self):
        """Whether pictures may be tokenised empty and their context tokens put in: nothing beside them changes.

        True where the three image tokens are special, and take in no white space and nothing normalised.
        """
        decoder = self.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        added = {token.content: token for token in decoder.values()}
        tokens = [added.get(text) for text in (IMAGE_START, IMAGE_CONTEXT, IMAGE_END)]
        changing = ("lstrip", "rstrip", "normalized", "single_word")
        return all(one and one.special and not any(getattr(one, flag) for flag in changing) for one in tokens)

    def count_tiles(self, sizes, *, max_tiles=None):
        """Tiles of each picture of a row: [13] for [(640, 480)]; several pictures share the budget."""
        if not self.dynamic:
            return [1] * len(sizes)
        limits = self._limits(self.share(max_tiles or self.max_tiles, len(sizes)))
        return [count_tiles(*size, use_thumbnail=self.use_thumbnail, **limits) for size in sizes]

    def share(self, max_tiles, num_images):
        """The budget of one picture among several: max(1, max_tiles // num_images)."""
        return max(1, max_tiles // max(1, num_images))

    def tile(self, image, *, max_tiles):
        """One RGB picture → its tiles, uint8 [T, tile_px, tile_px, 3], at a budget that is its own."""
        if not self.dynamic:
            return np.asarray(image.resize((self.tile_px, self.tile_px), Image.Resampling.BICUBIC))[None]
        return cut_tiles(image, use_thumbnail=self.use_thumbnail, **self._limits(max_tiles))

    def grid(self, width_px, height_px, *, max_tiles):
        """(cols, rows) a picture of this size is cut into."""
        return choose_grid(width_px, height_px, **self._limits(max_tiles)) if self.dynamic else (1, 1)

    def _limits(self, budget):
        return {"max_tiles": budget, "min_tiles": min(self.min_tiles, budget), "tile_px": self.tile_px}

    def render(self, turns, num_tiles=()):
        """`Rendered` turns, as `rows.conversation.render` gives them, with pictures of so many tiles."""
        how = {"num_image_token": self.num_image_token, "system_message": self.system_message}
        return render(turns, self.template, num_tiles=num_tiles, **how)

    def token_id(self, token):
        """Id of a special token; CheckpointError if the tokenizer lacks it."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise CheckpointError(f"{self.folder}: the tokenizer lacks {token}; expected the released special tokens")
        return found

    def with_tiles(self, max_tiles):
        """The same processor with another tile budget."""
        return replace(self, max_tiles=max_tiles)

    def show_tiles(self, image):
        """How a picture is cut and what it costs, under a slider for max_tiles and an upload button.

        Args: image: path, PIL image or uint8 array [H, W, 3].
        """
        return shown("tiles:tiles_live").function(image, self)


@dataclass(frozen=True)
class FastTokenizer:
    """The part of a tokenizer that encoding needs, without the library around it: small to send, quick to start."""

    backend_tokenizer: Any  # tokenizers.Tokenizer
    unk_token_id: int | None

    def __call__(self, text, *, return_offsets_mapping=False):
        encoded = self.backend_tokenizer.encode(text)
        return {"input_ids": encoded.ids, "offset_mapping": encoded.offsets}

    def convert_tokens_to_ids(self, token):
        """Id of a token, None if there is none."""
        return self.backend_tokenizer.token_to_id(token)


def light_processor(processor):
    """The same processor around a `FastTokenizer`; None stays None."""
    if processor is None or isinstance(processor.tokenizer, FastTokenizer):
        return processor
    tokenizer = processor.tokenizer
    return replace(processor, tokenizer=FastTokenizer(tokenizer.backend_tokenizer, tokenizer.unk_token_id))
