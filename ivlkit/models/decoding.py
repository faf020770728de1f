"""What comes out of `generate`: ids as text, the probability of each token."""

import torch
from transformers import LogitsProcessor

KEPT_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")  # special tokens that are part of an answer


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
