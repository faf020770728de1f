"""What a frozen vision tower makes of a tile, kept on disk for the epochs after the first: a file a tile.

A file is named by the tile's pixels and by all that decides what is made of them. So nothing that is found can be
wrong: another picture, grid or tower has another name, and a run that goes on finds what it wrote before. The files lie
in the run's folder, which all ranks share, and go when the run ends: another run has other weights, or is this one.
"""

import hashlib
import os
from itertools import chain
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ...data.collate import IMAGENET_MEAN, IMAGENET_STD
from ...data.files import replacing
from ...hardware import GIB
from ..methods import part_of

KEY = "features"  # of a file's one tensor, [256, H], or [256, 4C] where the projector trains


class KeptFeatures:
    """Reads in the processes that prepare batches, writes in the one that trains. Memory holds one batch's features.

    Args:
        folder: made if need be; each rank writes its share of what the recipe's `keep_features` leaves there.
        say: is given a sentence when that is full; tiles that are not kept are seen in every epoch.
    """

    def __init__(self, training, folder, *, say):
        recipe = training.recipe
        folder.mkdir(parents=True, exist_ok=True)
        used = sum(path.stat().st_size for path in folder.iterdir())
        self.folder, self.say, self.gib, self.waiting = folder, say, recipe.keep_features, None
        self.is_first = training.accelerator.is_main_process
        self.room_bytes = max(0, recipe.keep_features * GIB - used) / recipe.processes
        self.tower = _fingerprint(training)  # all ranks meet here: none has written yet

    def look_up(self, batch):
        """A batch without the tiles that are kept.

        Returns: the batch with `tiles` uint8 [M, S, S, 3], which are missing, `missing`, their M files, `kept`
            [K, 256, H] or None, and `places` int64 [M + K]: where each tile's features are, the kept ones first.
        """
        if not len(batch["tiles"]):
            return batch
        paths = [self._path(tile) for tile in batch["tiles"].numpy()]
        found = [_read(path) for path in paths]
        kept = [features for features in found if features is not None]
        is_missing = torch.tensor([features is None for features in found])
        return batch | {
            "tiles": batch["tiles"][is_missing],
            "missing": [path for path, features in zip(paths, found, strict=True) if features is None],
            "kept": torch.stack(kept) if kept else None,
            "places": is_missing.int().argsort(stable=True).argsort(),
        }

    def complete(self, batch, seen):
        """What `see` gave of the missing tiles (None: of none) → that of all, in order; `write` keeps the new ones."""
        if batch["missing"] and self.room_bytes:
            copied = torch.cuda.Event() if seen.is_cuda else None
            self.waiting = batch["missing"], seen.detach().to("cpu", non_blocking=True), copied
            if copied:
                copied.record()
        parts = [part for part in (batch["kept"], seen) if part is not None]
        return torch.cat(parts)[batch["places"]]

    def write(self):
        """What waits since `complete`, as far as there is room; each file appears whole, whichever rank writes it."""
        (paths, seen, copied), self.waiting = self.waiting or ((), (), None), None
        if copied:
            copied.synchronize()
        for path, features in zip(map(Path, paths), seen, strict=True):
            content = save({KEY: features})
            if len(content) > self.room_bytes:
                self.room_bytes = 0
                if self.is_first:
                    self.say(f"keep_features: {self.gib:g} GiB are full; other tiles go through the tower every epoch")
                return
            if not path.exists():
                with replacing(path, mark=f".{os.getpid()}") as aside:
                    aside.write_bytes(content)
                self.room_bytes -= len(content)

    def _path(self, tile):
        digest = hashlib.sha256(self.tower)
        digest.update(tile)
        return str(self.folder / digest.hexdigest())


def _read(path):
    """Features that are mapped, not read; None where there is no file, or one that a loss of power cut off."""
    try:
        return load_file(path)[KEY]
    except (FileNotFoundError, SafetensorError):
        return None


def _fingerprint(training):
    """Of all that makes features of pixels: frozen weights and buffers as loaded, quantised or not, and precision.

    Under ZeRO-3 each rank adds its share of the weights.
    """
    model = training.model
    said = model.config.to_json_string(), IMAGENET_MEAN, IMAGENET_STD, training.accelerator.mixed_precision
    digest = hashlib.sha256(repr(said).encode())
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if not value.requires_grad and part_of(name) in ("vision", "projector"):
            value = getattr(value, "ds_tensor", value).detach()
            digest.update(f"{name} {value.dtype}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return "".join(gather_object([digest.hexdigest()])).encode()
