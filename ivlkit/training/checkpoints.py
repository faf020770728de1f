"""Checkpoints that are whole or not there: written aside, flushed, renamed, and read through before a run goes on.

A checkpoint's `checkpoint.json` is written last and holds size and SHA-256 of every other file. A checkpoint that does
not fit it is set aside, and the one before is taken.
"""

import errno
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import torch
from safetensors.torch import load_file, save_file

from ..data.files import PART, appearing, flush_folder, sha256, vanish
from ..errors import CheckpointError, TrainingError
from ..hardware import free_bytes
from .engine.distributed import local_shard

CONTENTS_FILE = "checkpoint.json"
CORRUPT = ".corrupt"  # ends the name of one that was set aside
FULL_MB = 1  # less is a full disk, whatever a writer says: torch's says "unexpected pos"


def checkpoints(folder):
    """The checkpoints of a run, oldest first: `[folder/checkpoint-5, folder/checkpoint-10]`."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(path):
    """10 for `checkpoint-10`."""
    return int(path.name.rpartition("-")[2])


@contextmanager
def writing_checkpoint(to, accelerator):
    """A folder that takes the place of `to` once all ranks have written into it.

    Raises: TrainingError if it can't be written, which leaves the checkpoints before as they are.
    """
    writes = accelerator.is_main_process
    with appearing(to) if writes else nullcontext(to.with_name(to.name + PART)) as aside:
        try:
            accelerator.wait_for_everyone()
            yield aside
            accelerator.wait_for_everyone()
            if writes:
                write_contents(aside)
                if to.exists():  # one that this run did not go on from
                    vanish(to)
        except Exception as error:  # while what fills a disk is still there
            raise TrainingError(_not_written(to, error)) from error
    accelerator.wait_for_everyone()


def _not_written(to, error):
    free_mb = free_bytes(to.parent) / 1e6
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    is_full = free_mb < FULL_MB or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    found = f"its disk is full, {free_mb:.1f} MB are free" if is_full else reason
    kept = checkpoints(to.parent)
    last = f"{kept[-1].name} is whole, and training again goes on from it" if kept else "there is none before it"
    return f"{to}: can't be written ({found}); make room, or train in a folder on a larger disk; {last}"


def write_contents(folder):
    """List a folder's files in it, and bring all of them onto the disk."""
    (folder / CONTENTS_FILE).write_text(json.dumps(_contents(folder), indent=1))
    flush_folder(folder)


def _contents(folder):
    """{name: [bytes, SHA-256]} of the files in a folder and below; several are read at once."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CONTENTS_FILE)
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(sha256, paths))
    named = zip(paths, digests, strict=True)
    return {str(path.relative_to(folder)): [path.stat().st_size, digest] for path, digest in named}


def find_damage(folder):
    """What is wrong with a checkpoint, "" for nothing: "optimizer.pt is not as it was written"."""
    try:
        expected = json.loads((folder / CONTENTS_FILE).read_text())
        if not expected:
            return f"{CONTENTS_FILE} lists nothing"
        missing = [name for name in expected if not (folder / name).is_file()]
        cut = [name for name in expected if name not in missing and (folder / name).stat().st_size != expected[name][0]]
        if missing or cut:
            return f"{missing[0]} is missing" if missing else f"{cut[0]} has another size than was written"
        found = _contents(folder)
        changed = [name for name in expected if found[name] != expected[name]]
        return f"{changed[0]} is not as it was written" if changed else ""
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        return f"{CONTENTS_FILE} can't be read ({type(error).__name__})"


def last_whole(folder):
    """The newest checkpoint that is as it was written, and why newer ones are not: (path or None, {path: damage})."""
    damaged = {}
    for path in reversed(checkpoints(folder)):
        damage = find_damage(path)
        if not damage:
            return path, damaged
        damaged[path] = damage
    return None, damaged


def tidy(folder, damaged):
    """Remove what was left half written or half removed, and take damaged checkpoints out of the way."""
    for path in folder.glob(f"*{PART}"):
        shutil.rmtree(path, ignore_errors=True)
    for path in damaged:
        aside = path.with_name(path.name + CORRUPT)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def keep_newest(folder, number):
    """Remove all checkpoints but the newest ones."""
    for path in checkpoints(folder)[:-number]:
        vanish(path)


def check_finite(model, step):
    """Raise TrainingError if a trained weight is not finite: a checkpoint of it would replace a good one."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(local_shard(parameter)).all():
            raise TrainingError(
                f"{name} is not finite after step {step}; expected finite weights; no checkpoint is made of it, the "
                "last one is kept; lower learning_rate"
            )


def save_trained(model, folder, *, state_dict=None):
    """Write what a run trained: PEFT's adapter files, or `model.safetensors` with transformers' keys."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)  # "auto" would ask the hub
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
        return
    tensors = state_dict or model.state_dict()
    tensors = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_trained(model, folder):
    """Load what `save_trained` wrote into a model of the same kind.

    Raises: CheckpointError for any missing or unexpected tensor.
    """
    adapter = hasattr(model, "peft_config")
    path = folder / ("adapter_model.safetensors" if adapter else "model.safetensors")
    try:
        tensors = load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path}: can't be read ({error}); expected a checkpoint of this run") from error
    if adapter:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        _check_keys(tensors.keys(), get_peft_model_state_dict(model, save_embedding_layers=False).keys(), path)
        set_peft_model_state_dict(model, tensors)
    else:
        _check_keys(tensors.keys(), model.state_dict().keys(), path)
        model.load_state_dict(tensors)


def _check_keys(found, expected, path):
    for what, keys in (("missing", expected - found), ("unexpected", found - expected)):
        if keys:
            raise CheckpointError(
                f"{path}: {len(keys)} tensors are {what}, first {min(keys)}; is it of another recipe?"
            )
