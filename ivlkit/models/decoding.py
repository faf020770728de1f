"""What goes into `generate`: a batch's cache; what comes out of it: ids as text, the probability of each token."""

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LogitsProcessor

from .modeling.attention import rope_limits

KEPT_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")  # special tokens that are part of an answer

PREFILL_TOKENS = 16384  # places of prompts computed at once: bounds the layers' memory, and keeps a GPU busy
ONE_ROW_A_PROMPT = {"do_sample", "temperature", "top_k", "top_p", "min_new_tokens"}  # options that keep to it


def decode(vlm, ids):
    """Ids up to the closing token → text without special tokens, except those that mark boxes."""
    tokenizer = vlm.tokenizer
    end = tokenizer.convert_tokens_to_ids(vlm.processor.template.end)
    ids = ids[: ids.index(end)] if end in ids else ids
    dropped = set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids(list(KEPT_TOKENS)))
    return tokenizer.decode([number for number in ids if number not in dropped]).strip()


class Probabilities(LogitsProcessor):
    """Notes how probable each chosen token was, one step of logits at a time: [B, V], never [B, L, V]."""

    def __init__(self):
        self.before, self.steps = None, []

    def __call__(self, input_ids, scores):
        self._note(input_ids)
        self.before = scores.float().log_softmax(-1)
        return scores

    def of(self, ids):
        """The probabilities of what `generate` gave: lists, a number for each of the ids [B, L]."""
        self._note(ids)
        return torch.cat(self.steps, dim=1).exp().tolist()

    def _note(self, ids):
        if self.before is not None:  # the last of the ids was chosen from these
            self.steps.append(self.before.gather(1, ids[:, -1:]))


def with_ends(vlm, ids, probabilities):
    """(where it ends in the decoded text, its probability) of each token."""
    return tuple((len(decode(vlm, ids[: place + 1])), p) for place, p in enumerate(probabilities))


def prefilled(model, embeds, generation):
    """{"past_key_values": the cache of prompts [L, H] but for their last token, …}; {} where `generate` makes its own.

    Prompts of like length are computed together, at most `PREFILL_TOKENS` at once, and padded on the right, where
    causal attention never looks: without a mask torch has a faster kernel for it, and hardly anything is padding.
    """
    lengths, (limit, _) = list(map(len, embeds)), rope_limits(model.config.text_config)
    groups = like_lengths(lengths, PREFILL_TOKENS)
    if len(groups) == 1 or max(lengths) > (limit or max(lengths)) or not generation.keys() <= ONE_ROW_A_PROMPT:
        return {}
    places = torch.arange(max(lengths)) - torch.tensor([max(lengths) - length for length in lengths])[:, None]
    places = places.clamp(min=0).to(embeds[0].device)  # else `generate` would count padding
    return {"past_key_values": _left_padded(model, embeds, groups), "position_ids": places}


def like_lengths(lengths, most):
    """Row numbers, the shortest first, in groups of at most so many places: [[1, 2], [0]] for 9, 3, 4 tokens and 10."""
    groups = [[]]
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[number] > most:
            groups.append([])
        groups[-1].append(number)
    return groups


def _left_padded(model, embeds, groups):
    """The groups' keys and values, each prompt's at the right end of its row, as `generate` takes a cache."""
    longest, joined = max(map(len, embeds)) - 1, {}
    for group in groups:
        rows = [embeds[number][:-1] for number in group]
        outputs = model.model.language_model(inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=True)
        for layer, states in enumerate(outputs.past_key_values.layers):
            for kind, found in (("keys", states.keys), ("values", states.values)):  # [rows, heads, L, D]
                if (layer, kind) not in joined:
                    joined[layer, kind] = found.new_zeros(len(embeds), found.shape[1], longest, found.shape[3])
                for number, row, own in zip(group, rows, found, strict=True):
                    joined[layer, kind][number, :, longest - len(row) :] = own[:, : len(row)]
    cache = DynamicCache(config=model.config.text_config)
    for layer in range(len(joined) // 2):
        cache.update(joined.pop((layer, "keys")), joined.pop((layer, "values")), layer)
    return cache
