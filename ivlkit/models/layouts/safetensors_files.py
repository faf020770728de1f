"""Safetensors files written one shard at a time, and what can be said of files without reading all of them."""

import hashlib
import json
import os
import struct
from contextlib import contextmanager

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from ...data.files import appearing, replacing
from ...errors import ExportError
from ...hardware import free_bytes

INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
SPARE_BYTES = 200_000_000  # left free beside the weights: tokenizer, card, the system
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # as safetensors calls them
_SAMPLED_BLOCKS, _BLOCK_BYTES = 16, 1 << 16


def write_shards(tensors, shapes, folder, *, dtype):
    """Write `model.safetensors`, or numbered shards and their index when it would be larger than SHARD_BYTES.

    Only one tensor is in memory at a time; safetensors' own `save_file` would hold a shard twice.

    Args:
        tensors: a mapping that makes a tensor when it is asked for its key.
        shapes: {key: shape} of what is written, in this order.
        dtype: of the files.
    Raises: ExportError if the disk of the folder has no room for them and some to spare.
    """
    free, needed = free_bytes(folder), total_bytes(shapes, dtype) + SPARE_BYTES
    if free < needed:
        raise ExportError(
            f"{folder}: {free / 1e9:.1f} GB free; expected {needed / 1e9:.1f} GB for the export; free some or choose a "
            "folder on another disk"
        )
    split = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: total_bytes({"": shape}, dtype),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for name, keys in split.filename_to_tensors.items():
        _write_file(folder / name, tensors, {key: shapes[key] for key in keys}, dtype)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    else:
        (folder / INDEX_FILE).unlink(missing_ok=True)  # an older one would be read instead


def _write_file(path, tensors, shapes, dtype):
    """One safetensors file: length of the header, header (JSON), the tensors' bytes without gaps."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key, shape in shapes.items():
        begin, end = end, end + total_bytes({key: shape}, dtype)
        header[key] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # The tensors may be maps of the file that has this name now.
    with replacing(path) as aside, open(aside, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, shape in shapes.items():
            tensor = tensors[key].detach().to("cpu", dtype).contiguous()
            assert tuple(tensor.shape) == tuple(shape), key
            file.write(tensor.reshape(-1).view(torch.uint8).numpy())


def total_bytes(shapes, dtype):
    """Bytes of tensors of these shapes: 8 for {"a": (2, 2)} in bfloat16."""
    return sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize


@contextmanager
def new_folder(to):
    """`appearing`; a name that is taken, be it by a link to nowhere, or can't be written is an ExportError."""
    if os.path.lexists(to):
        raise ExportError(f"{to}: exists already; expected a new folder; remove it or choose another name")
    try:
        with appearing(to) as aside:
            yield aside
    except OSError as error:
        raise ExportError(f"{to}: not written ({error}); expected a place with room that may be written") from error


def fingerprint(files):
    """Hash that tells weights apart without reading them all: header, size and 16 blocks of 64 KiB of each file.

    Training moves every weight of a part, so these blocks differ between a base and what was trained from it.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            digest.update(file.read(min(header_bytes, size)))
            for block in range(_SAMPLED_BLOCKS):
                file.seek(8 + header_bytes + (size - 8 - header_bytes) * block // _SAMPLED_BLOCKS)
                digest.update(file.read(_BLOCK_BYTES))
        digest.update(str(size).encode())
    return digest.hexdigest()
