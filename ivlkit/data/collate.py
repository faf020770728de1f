"""Examples → one padded batch, and uint8 tiles → pixel values on the device."""

import numpy as np
import torch

from .encode import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def collate(examples, *, pad_token_id):
    """Pad to the longest row on the right.

    Returns: dict of input_ids, labels, attention_mask int64 [B, L] and tiles uint8 [ΣT, S, S, 3].
    """
    length = max(len(example) for example in examples)
    return {
        "input_ids": torch.stack([_pad(example.input_ids, length, pad_token_id) for example in examples]),
        "labels": torch.stack([_pad(example.labels, length, IGNORE_INDEX) for example in examples]),
        "attention_mask": torch.stack([_pad(np.ones(len(example), np.int64), length, 0) for example in examples]),
        "tiles": torch.from_numpy(np.concatenate([example.tiles for example in examples])),
    }


def normalise_tiles(tiles, *, dtype=torch.float32):
    """uint8 [T, S, S, 3] → pixel values [T, 3, S, S], ImageNet mean and standard deviation, on the tiles' device."""
    mean = torch.tensor(IMAGENET_MEAN, device=tiles.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=tiles.device).view(1, 3, 1, 1)
    pixels = tiles.permute(0, 3, 1, 2).to(torch.float32).div(255)
    return pixels.sub_(mean).div_(std).to(dtype)


def _pad(values, length, fill):
    padded = np.full(length, fill, dtype=np.int64)
    padded[: len(values)] = values
    return torch.from_numpy(padded)
