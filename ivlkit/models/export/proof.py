"""An export proves itself: what was written is loaded again and asked the same stored questions as its source."""

import math
import warnings
from dataclasses import dataclass

import torch

from ...data.collate import normalise_tiles
from ...data.rows.records import Turn
from ...errors import ExportError
from ...hardware import GIB, give_back_gpu_memory
from ..load import gpu_named, most_copied_gib

TOLERANCE = 1e-4  # logits in float32, relative to the largest where that is above 1
COARSE_TOLERANCE = 0.05  # logits in bfloat16: an adapter beside a weight rounds otherwise than one inside it
MAX_NEW_TOKENS = 16
SAMPLES = (("<image>\nWhat is shown?", 1), ("<image>\nWhat is written here?", 2), ("Hello, who are you?", 0))
_ROOM = 1.2  # a model's bytes and what it needs to answer


@dataclass(frozen=True)
class Answers:
    """What a model says to the samples: logits of the last eight tokens, and greedy replies as ids."""

    logits: list[torch.Tensor]
    replies: list[list[int]]


@dataclass(frozen=True)
class Proof:
    """What was compared, for the model card."""

    where: str  # "float32 on cpu"
    largest_difference: float  # of logits, source to export
    equal_replies: int  # greedy, of `samples`, between source and the weights as written
    samples: int
    tensors: int  # compared bit for bit after reloading; 0 for an adapter
    from_float8: tuple | None = None  # largest difference and equal replies beside a run's own answers on float8

    def __str__(self):
        equal = f"{self.equal_replies} of {self.samples} greedy replies are equal"
        text = f"reloaded in {self.where}: logits differ by at most {self.largest_difference:.1e}, {equal}"
        if self.tensors:
            text += f", {self.tensors} tensors are equal bit for bit"
        if self.from_float8:
            difference, equal = self.from_float8
            text += (
                "; the adapter was trained on weights in float8 and folded into the original ones: beside the run on "
                f"float8, logits differ by at most {difference:.1e}, {equal} of {self.samples} greedy replies are equal"
            )
        return text


def _samples(processor):
    """(ids [1, L], tiles uint8 [T, S, S, 3]) of the stored questions as this model reads them, fixed patterns shown."""
    for question, num_tiles in SAMPLES:
        text = processor.render([Turn("user", question)], [num_tiles] if num_tiles else ()).text
        shape = (num_tiles, processor.tile_px, processor.tile_px, 3)
        pattern = torch.arange(math.prod(shape), dtype=torch.int64).reshape(shape) * 2654435761 % 256
        yield torch.tensor([processor.tokenizer(text)["input_ids"]]), pattern.to(torch.uint8)


@torch.inference_mode()
def ask(model, processor):
    """`Answers` of any InternVL of transformers, ours or the plain one."""
    end = processor.token_id(processor.template.end)
    logits, replies = [], []
    for input_ids, tiles in _samples(processor):
        input_ids = input_ids.to(model.device)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if len(tiles):
            inputs["pixel_values"] = normalise_tiles(tiles.to(model.device), dtype=model.dtype)
        logits.append(model(**inputs, logits_to_keep=8).logits.float().cpu())
        written = model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        replies.append(written[0, input_ids.shape[1] :].tolist())
    return Answers(logits, replies)


def compare(before, after, *, dtype, what):
    """The largest difference of logits.

    Args: dtype: in which both models computed; what: for the message, "merging".
    Raises: ExportError if it is more than rounding, or if a reply differs in float32.
    """
    exact = dtype == torch.float32
    allowed = TOLERANCE if exact else COARSE_TOLERANCE
    for first, second in zip(before.logits, after.logits, strict=True):
        difference = (first - second).abs().max().item()
        if not difference <= allowed * max(1.0, first.abs().max().item()):
            raise ExportError(
                f"{what} changed logits by {difference:.2e}; expected at most {allowed}; nothing was written"
            )
    if exact and before.replies != after.replies:
        raise ExportError(f"{what} changed a greedy reply to a stored question; nothing was written")
    return largest_difference(before, after)


def largest_difference(first, second):
    """Of logits."""
    return max((one - other).abs().max().item() for one, other in zip(first.logits, second.logits, strict=True))


def count_equal(before, after):
    """How many of the replies are the same ids."""
    return sum(first == second for first, second in zip(before.replies, after.replies, strict=True))


@torch.no_grad()
def check_and_unround(model, source):
    """Every weight of a reloaded export equals the source's, rounded once to the file's dtype; returns how many.

    The source's own take their place: what the model answers then tells rounding from a wrong merge.
    """
    state = model.state_dict()
    if wrong := state.keys() ^ source.weights.keys():
        raise ExportError(f"reloading the export: tensor {min(wrong)} is missing or new; nothing was written")
    for key, tensor in state.items():
        own = source.weights[key]
        if not torch.equal(tensor, own.to(source.dtype).to(tensor)):
            raise ExportError(f"reloading the export changed tensor {key}; expected equal bits; nothing was written")
        tensor.copy_(own)
    return len(state)


def choose_place(num_parameters, device):
    """(device, dtype) to load a model for the proof: float32 where it fits into free memory, else bfloat16.

    Float32 counts as copied: `load` widens what a file holds in the computer's memory, for a GPU too.

    Args: device: None: the GPU if there is one with room, else the CPU, which a warning says.
    Raises: ExportError if there is no room.
    """
    seen = []
    give_back_gpu_memory()
    for wanted in [device] if device else ["cuda", "cpu"][not torch.cuda.is_available() :]:
        with gpu_named(wanted):
            device = torch.device(wanted)
        if seen:
            said = f"{seen[0]} of memory free, too little to load the export again: the CPU does it, which takes longer"
            warnings.warn(said, stacklevel=2)
        copied = most_copied_gib(device) * GIB
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2 * copied
        if num_parameters * 4 * _ROOM < free and num_parameters * 4 <= copied:
            return device, torch.float32
        if num_parameters * 2 * _ROOM < free:
            return device, torch.bfloat16
        seen.append(f"{device}: {free / 1e9:.1f} GB")
    raise ExportError(
        f"{', '.join(seen)} of memory free; expected {num_parameters * 2 * _ROOM / 1e9:.1f} GB to load the export "
        "again and compare; free some, or pass another device"
    )
