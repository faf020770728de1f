"""Examples → one padded or one packed batch, and uint8 tiles → pixel values on the device."""

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .encode import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def collate(examples, *, pad_token_id):
    """Pad to the longest row on the right.

    Returns: dict of input_ids, labels, attention_mask int64 [B, L] and tiles uint8 [ΣT, S, S, 3].
    """
    return {
        "input_ids": _padded([example.input_ids for example in examples], pad_token_id),
        "labels": _padded([example.labels for example in examples], IGNORE_INDEX),
        "attention_mask": _padded([np.ones(len(example), np.int64) for example in examples], 0),
        "tiles": torch.from_numpy(np.concatenate([example.tiles for example in examples])),
    }


def _padded(rows, fill):
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=fill)  # [B, L]


def collate_packed(examples, *, pad_token_id=None, max_length=None):
    """One sequence of whole samples that don't see each other: no padding, and no `attention_mask` either.

    A mask of ones would let every sample see those before it. Instead positions restart, which transformers' sdpa, flex
    and flash attention understand, and `cu_seqlens` bounds the samples for kernels that take it. The first label of a
    sample is masked: the last token of the one before must not predict it.

    Args:
        pad_token_id: not used; collate functions are called alike.
        max_length: the longest row there can be, for layers compiled once; None for the longest of these.
    Returns: dict of input_ids, position_ids, labels and sample_ids int64 [1, ΣL], cu_seqlens int32 [samples + 1],
        max_length, an int, and tiles uint8 [ΣT, S, S, 3]. Samples of 3 and 2 tokens: position_ids [[0, 1, 2, 0, 1]],
        sample_ids [[0, 0, 0, 1, 1]], cu_seqlens [0, 3, 5], max_length 3.
    """
    lengths = [len(example) for example in examples]
    labels = [np.concatenate([[IGNORE_INDEX], example.labels[1:]]) for example in examples]
    return {
        "input_ids": _one_row([example.input_ids for example in examples]),
        "position_ids": _one_row([np.arange(length) for length in lengths]),
        "labels": _one_row(labels),
        "sample_ids": _one_row([np.full(length, number) for number, length in enumerate(lengths)]),
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "max_length": max_length or max(lengths),
        "tiles": torch.from_numpy(np.concatenate([example.tiles for example in examples])),
    }


def _one_row(parts):
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))[None]  # [1, ΣL]


def normalise_tiles(tiles, *, dtype=torch.float32):
    """uint8 [T, S, S, 3] → pixel values [T, 3, S, S], ImageNet mean and standard deviation, on the tiles' device."""
    mean = torch.tensor(IMAGENET_MEAN, device=tiles.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=tiles.device).view(1, 3, 1, 1)
    pixels = tiles.permute(0, 3, 1, 2).to(torch.float32).div(255)
    return pixels.sub_(mean).div_(std).to(dtype)
