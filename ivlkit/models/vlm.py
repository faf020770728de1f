"""A loaded model with ways to ask it."""

import weakref
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.processor import Processor
from ..errors import CheckpointError
from ..hardware import give_back_gpu_memory
from ..views import shown
from . import chat
from .families import NANO_FOLDER, Family
from .modeling.float8 import holds_float8
from .modeling.quantize import count_values

alive = weakref.WeakSet()  # every `VLM` of this process: named when the next one does not fit beside it


@dataclass(eq=False)
class VLM:
    """A loaded model: transformers' own `model`, its `processor`, and ways to ask it."""

    model: torch.nn.Module
    processor: Processor
    config: dict  # config.json as released
    folder: Path  # where the weights came from
    adapter: object = None  # PEFT's wrapper around `model` when a run's adapter is loaded

    def __post_init__(self):
        alive.add(self)

    @property
    def tokenizer(self):
        """The fast tokenizer."""
        return self.processor.tokenizer

    @property
    def family(self) -> Family:
        """The family's entry: what is released, LoRA targets, the guide's hardware."""
        return self.processor.family

    @property
    def origin(self):
        """Where it came from, to be shown: a folder, or "the package"."""
        return "the package" if self.folder == NANO_FOLDER else str(self.folder)

    def chat(self, question, images=None, **options):
        """Ask about no, one or several pictures; see `ivlkit.models.chat.chat`."""
        return chat.chat(self, question, images, **options)

    def chat_batch(self, questions, images=None, **options):
        """Ask many questions at once; see `ivlkit.models.chat.chat_batch`."""
        return chat.chat_batch(self, questions, images, **options)

    def merge_adapter(self):
        """Fold a loaded adapter into the weights; nothing happens without one.

        Raises: CheckpointError for weights in float8, which have no room for what was trained.
        """
        if self.adapter is not None and holds_float8(self.model):
            raise CheckpointError(
                f"{self.folder}: an adapter on weights in float8, to be folded in; expected it beside them, or the "
                f"original weights; ivlkit export {self.folder} --to merged, then load that"
            )
        if self.adapter is not None:
            self.model, self.adapter = self.adapter.merge_and_unload(), None

    def release(self):
        """Give the memory back; neither this object nor another of the same module can answer afterwards."""
        if self.model is not None:
            for value in (*self.model.parameters(), *self.model.buffers()):  # a notebook may still name the module
                value.data = value.data.new_empty(0)
        self.model = self.adapter = None
        give_back_gpu_memory()

    @shown("inside:parts_figure")
    def show(self, recipe):
        """The parts to scale and what a recipe would train of each, by its name or a `Recipe`; changes nothing."""

    @shown("ask:ask_live")
    def ask(self, question=None, image=None, **generation):
        """A cell to ask in: upload a picture, type a question, see the answer as it is written.

        Args:
            question, image: asked at once, so that the cell shows an answer without a click.
            generation: options of `chat`, such as max_new_tokens.
        """

    def __repr__(self):
        if self.model is None:
            return f"VLM({self.folder}: released)"
        parameters = sum(map(count_values, self.model.parameters()))
        where = f"{self.model.dtype} on {self.model.device}".replace("torch.", "")
        return f"VLM({self.family.key} from {self.origin}: {parameters / 1e6:,.1f} M parameters, {where})"

    _repr_html_ = shown("model:vlm_html")
