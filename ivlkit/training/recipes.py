"""Named training recipes: the six released scripts and nano's. `recipe("2b-lora", learning_rate=1e-4)`."""

import difflib
import math
import os
import re
from dataclasses import asdict, dataclass, fields, replace
from linecache import getlines
from pathlib import Path

import yaml

from ..errors import RecipeError
from ..views import shown
from .methods import TUNINGS, WHOLE

FEW_UPDATES = 100  # a run with fewer teaches next to nothing at the released learning rates
OVERFIT = "-overfit"  # ends the name of a recipe that learns a few rows by heart
WEIGHTINGS = ("token", "sample", "square")
# Fields that runs of earlier versions lack.
YOUNGER = {"loss": "cross_entropy", "order": "shuffled", "weights": "bf16", "keep_features": 0.0}
SCHEDULERS = (  # transformers' that need no further numbers
    *("cosine", "linear", "constant", "constant_with_warmup"),
    *("inverse_sqrt", "polynomial", "cosine_with_restarts"),
)
_KINDS = {  # annotation of a field → how it is said, what is taken
    int: ("a whole number", (int,)),
    int | None: ("a whole number or none", (int, type(None))),
    float: ("a number, such as 4e-5 (in YAML 4.0e-5)", (int, float)),
    float | None: ("a number or none", (int, float, type(None))),
    bool: ("true or false", (bool,)),
    str: ("text", (str,)),
}
_RANGES = (  # fields, what holds for their numbers, how it is said
    (None, math.isfinite, "a finite number"),
    (
        {
            *("total_batch", "per_device_batch", "gpus", "epochs", "max_seq_length", "max_tiles", "lora_rank"),
            *("lora_alpha", "learning_rate", "save_steps", "save_total_limit", "bin_tokens", "bin_tiles"),
            *("eval_steps", "eval_samples", "patience", "vision_learning_rate", "projector_learning_rate"),
        },
        lambda value: value > 0,
        "more than 0",
    ),
    ({"weight_decay", "max_grad_norm", "workers", "seed", "warmup_ratio"}, lambda value: value >= 0, "0 or more"),
    ({"keep_features"}, lambda value: value >= 0, "0 or more GiB"),
    ({"lora_dropout", "drop_path", "adam_beta2"}, lambda value: 0 <= value < 1, "0 or more and below 1"),
    ({"warmup_ratio"}, lambda value: value <= 1, "a share of all steps, at most 1"),
)
_CHOICES = {
    **{part: [name for name, method in TUNINGS.items() if part in method.parts] for part in WHOLE},
    "weights": ("bf16", "float8", "nf4"),
    "weighting": WEIGHTINGS,
    "optimizer": ("adamw", "adamw_8bit", "paged_adamw_8bit"),
    "scheduler": SCHEDULERS,
    "gradient_checkpointing": ("none", "selective", "full"),
    "zero_stage": (0, 1, 2, 3),
}


def _check_value(where, value, field):
    """Type and range of one field: YAML reads `1e-4` as text, and a batch of 0 rows would train nothing."""
    spoken, kinds = _KINDS[field.type]
    if callable(value) and field.name in ("loss", "order"):
        spoken = "the name of that function, as another process finds it, such as 'my_module:my_function'"
    if not isinstance(value, kinds) or (isinstance(value, bool) and field.type is not bool):
        raise RecipeError(f"{where}={value!r}; expected {spoken}")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    for names, holds, expected in _RANGES:
        if (names is None or field.name in names) and not holds(value):
            raise RecipeError(f"{where}={value}; expected {expected}")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run beside the data. The guide's names stand behind the fields where they differ."""

    name: str
    model: str  # family key or folder
    vision: str = "frozen"  # frozen | lora | full (freeze_backbone, use_backbone_lora)
    projector: str = "full"  # frozen | full (freeze_mlp)
    language: str = "full"  # frozen | lora | qlora | full (freeze_llm, use_llm_lora)
    unfreeze_vit_layers: int = 0  # of a frozen tower, these train in full: -4 for the last four, 20 for all from 20
    weights: str = "bf16"  # frozen matrices: bf16 (as loaded) | float8 (beside qlora the tower alone) | nf4 (qlora)
    vision_offload: bool = False  # a frozen tower's layers in the host's memory, on the GPU one at a time
    keep_features: float = 0.0  # GiB of disk for what a frozen tower made of tiles, for later epochs; 0: none
    lora_rank: int = 16  # r
    lora_alpha: int = 32  # α; the scale is α / r, always 2 in the released scripts
    lora_dropout: float = 0.05
    learning_rate: float = 4e-5
    vision_learning_rate: float | None = None  # of the vision tower; None: learning_rate
    projector_learning_rate: float | None = None  # of the projector; None: learning_rate
    optimizer: str = "adamw"  # adamw | adamw_8bit | paged_adamw_8bit (optim)
    weight_decay: float = 0.01
    warmup_ratio: float = 0.03  # share of all steps
    scheduler: str = "cosine"  # lr_scheduler_type
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    epochs: float = 1  # passes over the data; a fraction ends within a pass
    total_batch: int = 128  # samples an optimiser step (BATCH_SIZE)
    per_device_batch: int = 4  # samples a padded micro-batch (PER_DEVICE_BATCH_SIZE)
    packing: bool = True  # samples share bins, nothing is padded; false: padded batches of rows of like length
    bin_tokens: int | None = None  # tokens a bin; None: per_device_batch · max_seq_length
    bin_tiles: int | None = None  # tiles a bin; None: as many as its tokens allow
    gpus: int | None = 1  # processes, one a GPU (GPUS); None: as many as there are (`distributed.settle_gpus`)
    max_seq_length: int = 4096  # tokens a row, image tokens included
    max_tiles: int | None = None  # max_dynamic_patch; None: the checkpoint's
    drop_path: float = 0.0  # drop_path_rate; acts only in a vision tower that trains
    loss: str = "cross_entropy"  # a name of LOSSES, or module:function
    order: str = "shuffled"  # of each epoch's rows: a name of ORDERS, or module:function
    weighting: str = "token"  # a token, a sample or its square root weighs the same (loss_reduction)
    gradient_checkpointing: str = "full"  # activations computed again: none | selective (all but products) | full
    compile: bool = False  # each layer compiled, for bins of any length: minutes to start, then faster steps
    zero_stage: int = 0  # DeepSpeed ZeRO on several GPUs: 0 (none: DDP) | 1 | 2 | 3; on one it is not used
    zero_offload: bool = False  # ZeRO's optimizer state, at stage 3 the weights too, in the host's memory
    save_steps: int = 200  # optimiser steps between checkpoints
    save_total_limit: int = 1  # checkpoints kept
    eval_steps: int | None = None  # optimiser steps between validations; None: save_steps, or an epoch if it is shorter
    eval_samples: int = 8  # validation rows that are answered each time, spread over all
    patience: int | None = None  # validations in a row without a new best that end the run; None: no number does
    workers: int = 4  # processes that prepare rows
    seed: int = 42
    hardware: str = ""  # what the guide names

    reasons = ()  # why `suggest` chose what it did, or what surprises; no field: not a part of what is trained

    def __post_init__(self):
        if isinstance(self.gradient_checkpointing, bool):  # as older recipes say it
            object.__setattr__(self, "gradient_checkpointing", "full" if self.gradient_checkpointing else "none")
        for field in fields(self):  # 1 and 1.0 are the same recipe, and the same run
            if field.type in (float, float | None) and type(getattr(self, field.name)) is int:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                expected = ", ".join(map(str, allowed))
                raise RecipeError(f"{self.name}: {name}={getattr(self, name)!r}; expected one of {expected}")
        for field in fields(self):
            _check_value(f"{self.name}: {field.name}", getattr(self, field.name), field)
        self._settle_weights()
        for tuning in self.parts:
            TUNINGS[tuning].check(self)
        if set(self.parts) == {"frozen"} and not self.unfreeze_vit_layers:
            raise RecipeError(f"{self.name}: every part is frozen; expected one that trains")
        for clash in (*self._vision_clashes(), *self._engine_clashes()):
            raise RecipeError(f"{self.name}: {clash}")

    def _settle_weights(self):
        """NF4 is written as `language: qlora`, as recipes always did, so that one field alone says it."""
        if self.weights == "nf4" and self.language in ("lora", "qlora"):
            object.__setattr__(self, "language", "qlora")
            object.__setattr__(self, "weights", "bf16")
        for clash in self._weight_clashes() if self.weights != "bf16" else ():
            raise RecipeError(f"{self.name}: weights={self.weights!r} with {clash}")

    def _weight_clashes(self):
        if not self.has_adapters:
            yield f"{self._tunings}; expected adapters; set 'lora'"
        if self.weights == "nf4":
            yield f"language={self.language!r}; expected 'lora', on the language model"
        if self.language == "qlora" and self.vision_offload:
            yield "language='qlora', whose decoder is NF4, and vision_offload, whose tower stays; set one of the two"
        if self.stage == 3:
            yield "zero_stage=3, which divides weights before they are float8; set zero_stage=2 or less"

    def _vision_clashes(self):
        if self.unfreeze_vit_layers and self.vision != "frozen":
            yield (
                f"unfreeze_vit_layers={self.unfreeze_vit_layers} with vision={self.vision!r}; expected a frozen tower, "
                "of which these layers train; set vision='frozen'"
            )
        if self.keep_features and (self.vision != "frozen" or self.unfreeze_vit_layers):
            yield (
                f"keep_features={self.keep_features} with a vision tower that trains, whose features change; set "
                "keep_features=0"
            )
        if self.vision_offload and not (self.vision == "frozen" and self.has_adapters):
            yield (
                f"vision_offload with {self._tunings}; expected a frozen tower beside adapters; set vision='frozen' "
                "and language='qlora' or 'lora'"
            )
        if self.vision_offload and self.stage:
            yield f"vision_offload with zero_stage={self.stage}; expected DDP, a tower a process; set zero_stage=0"
        if self.vision != "frozen" and self.drop_path:
            yield f"drop_path={self.drop_path} in a vision tower that trains; set drop_path=0"

    def _engine_clashes(self):
        if self.compile and self.gradient_checkpointing == "selective":
            yield (
                "compile=true with gradient_checkpointing='selective', which sees no operation inside a compiled "
                "layer; set 'none' or 'full'"
            )
        if self.compile and not self.packing:
            yield "compile=true with packing=false; expected bins; set packing=true"
        if self.compile and self.stage == 3:
            yield (
                "compile=true with zero_stage=3, which fetches weights inside a layer; set zero_stage=2 or "
                "compile=false"
            )
        if self.zero_offload and (not self.zero_stage or self.optimizer != "adamw"):
            yield (
                f"zero_offload with zero_stage={self.zero_stage}, optimizer={self.optimizer!r}; expected zero_stage=1, "
                "2 or 3 and optimizer='adamw', whose state is moved"
            )
        if self.packing and self.bin_tokens is not None and self.bin_tokens < self.max_seq_length:
            yield (
                f"bin_tokens={self.bin_tokens} below max_seq_length {self.max_seq_length}; a row of that length fits "
                "in no bin; raise the one or lower the other"
            )

    @property
    def _tunings(self):
        return f"vision={self.vision!r}, language={self.language!r}"

    @property
    def stage(self):
        """`zero_stage` as it acts: 0 in a single process."""
        return self.zero_stage if self.processes > 1 else 0

    @property
    def parts(self):
        """(vision, projector, language) tuning."""
        return self.vision, self.projector, self.language

    @property
    def has_adapters(self):
        """Whether a part trains by adapters, such as LoRA's."""
        return any(TUNINGS[tuning].wrap for tuning in self.parts)

    def trained_vision_layers(self, layers):
        """How many of a tower's layers backward goes through, the last ones: 4 of 24 for `unfreeze_vit_layers=-4`."""
        if self.vision != "frozen":
            return layers
        return len(range(layers)[self.unfreeze_vit_layers :]) if self.unfreeze_vit_layers else 0

    @property
    def quantize(self):
        """What `load` is asked for: "4bit", "float8" or None."""
        return TUNINGS[self.language].quantize or ("float8" if self.weights == "float8" else None)

    @property
    def loading(self):
        """How a run loads its model, as options of `load`: so a card that could train it can ask it too."""
        return {"quantize": self.quantize, "tower_device": "cpu" if self.vision_offload else None}

    @property
    def float8_parts(self):
        """The parts whose frozen matrices become float8: of "language" and "vision", none, one or both."""
        kept = {"language": self.language == "qlora", "vision": self.vision_offload}
        return [part for part, stays in kept.items() if self.weights == "float8" and not stays]

    @property
    def full_precision(self):
        """Whether all weights are loaded in float32, as masters of what trains in full; DeepSpeed keeps its own."""
        return not (self.has_adapters or self.stage)

    @property
    def budgets(self):
        """(tokens, tiles or None) that a bin may hold: (16384, None) for 4 · 4,096."""
        return self.bin_tokens or self.per_device_batch * self.max_seq_length, self.bin_tiles

    @property
    def processes(self):
        """`gpus` as a number; 1 as long as it is not settled."""
        return self.gpus or 1

    @property
    def accumulation(self):
        """Padded micro-batches an optimiser step and GPU: 128 samples = 8 GPUs · 2 · accumulation 8.

        Raises: RecipeError where it does not divide.
        """
        at_once = self.processes * self.per_device_batch
        if self.total_batch % at_once:
            fitting = math.gcd(self.total_batch // self.processes, self.per_device_batch)
            fits = self.total_batch % self.processes == 0
            nearest = at_once * max(1, round(self.total_batch / at_once))
            raise RecipeError(
                f"{self.name}: total_batch {self.total_batch} is not a multiple of gpus {self.processes} x "
                f"per_device_batch {self.per_device_batch} = {at_once}; change one of the three, such as "
                + (f"per_device_batch={fitting}" if fits else f"total_batch={nearest}")
            )
        return self.total_batch // at_once

    def to_dict(self):
        """Its fields, for run.yaml, as earlier versions wrote them, since they name a run's folder.

        Younger ones only where they are set; a tower in 8 bits beside NF4 by its older name, `vision_int8`.
        """
        int8 = self.weights == "float8" and self.language == "qlora"
        values = asdict(self) | {"vision_int8": int8} | ({"weights": "bf16"} if int8 else {})
        return {key: value for key, value in values.items() if YOUNGER.get(key, ...) != value}

    def to_yaml(self):
        """YAML text, to be kept by `Path("mine.yaml").write_text(…)`; `ivlkit.recipe("mine.yaml")` reads it back."""
        return yaml.safe_dump(asdict(self), sort_keys=False)

    @classmethod
    def from_yaml(cls, text):
        """The recipe that `to_yaml` wrote, or a run.yaml's. Raises: RecipeError with the place where it is no YAML."""
        try:
            found = yaml.safe_load(text)
            return cls.from_dict(found["recipe"] if isinstance(found, dict) and "recipe" in found else found)
        except yaml.YAMLError as error:
            found = " ".join(str(error).split())
            raise RecipeError(f"a recipe that is no YAML: {found}; expected the fields of Recipe") from error

    @classmethod
    def from_dict(cls, values):
        """A recipe from its fields. Raises: RecipeError for an unknown or missing one.

        `vision_int8` of earlier versions is a tower in float8 beside NF4; beside a decoder as loaded it says nothing.
        """
        if not isinstance(values, dict):
            raise RecipeError(
                f"a recipe that is a {type(values).__name__}; expected its fields, name and model first; "
                'a file is read by ivlkit.recipe("mine.yaml")'
            )
        for key in ("name", "model"):
            if key not in values:
                raise RecipeError(f"a recipe with no `{key}`; expected it beside the other fields")
        values = dict(values)
        if values.pop("vision_int8", False) and values.get("language") == "qlora":
            values["weights"] = "float8"
        _check_known(values["name"], values)
        return cls(**values)

    _repr_html_ = shown("run:recipe_html")


_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
RECIPES = {name: Recipe(name=name, **values) for name, values in _TABLES["recipes"].items()}
RELEASED = tuple(name for name in RECIPES if not name.startswith("nano"))


def recipe(name, /, **changes):
    """A recipe, named or your own, with changes: `recipe("2b-lora", learning_rate=1e-4)`; `name="mine"` renames it.

    A path that ends in .yaml is read: what `to_yaml` or `ivlkit train … --dry-run` wrote, or a run's run.yaml.

    A recipe has values of its own, which `print(recipe("2b-lora"))` shows, in place of the defaults below. Where
    `packing` is false, `total_batch` is a multiple of gpus × `per_device_batch`: set both for a smaller one.

    Raises: RecipeError for an unknown name or field, with the nearest known one.
    """
    if isinstance(name, Recipe):
        _check_known(name.name, changes)
        return replace(name, **changes) if changes else name  # a copy would lose its reasons
    if isinstance(name, (str, os.PathLike)) and str(name).endswith((".yaml", ".yml")):
        return recipe(Recipe.from_yaml(Path(name).read_text(encoding="utf-8")), **changes)
    if not isinstance(name, str) or name.endswith((".json", ".jsonl", ".csv")):
        raise RecipeError(
            f"{str(name)[:80]} in the recipe's place; expected a recipe's name or a `Recipe`; the recipe comes first: "
            "train(recipe, data)"
        )
    if name not in RECIPES:
        raise RecipeError(f"recipe {name!r}; expected one of {', '.join(RECIPES)}{_nearest(name, RECIPES)}")
    _check_known(name, changes)
    found, own = replace(RECIPES[name], **changes), RECIPES[name].model
    if found.model in {each.model for each in RECIPES.values()} - {own}:  # legal, and rarely meant
        said = f"trains {found.model}, as model={found.model!r} asks, with the values that {name} has for {own}"
        object.__setattr__(found, "reasons", (said,))
    return found


if recipe.__doc__:  # not under python -OO
    _FIELD = re.compile(r"    [a-z]\w*: .* = |    (?:name|model): ")
    _lines = "".join(f"    {line}" for line in getlines(__file__) if _FIELD.match(line))
    recipe.__doc__ += f"\n    Names: {', '.join(RECIPES)}\n\n    Fields:\n{_lines}"


def overfitting(recipe, rows):
    """The recipe for a hundred updates on the same few rows, nothing dropped, its learning rate from the first one on.

    If they are not learned by heart then, the labels, the template or the rate are wrong: `train(…, overfit=8)`.
    """
    return replace(
        recipe,
        name=recipe.name + OVERFIT,
        epochs=100,
        total_batch=rows,
        per_device_batch=math.gcd(rows, recipe.per_device_batch),
        gpus=1,
        zero_stage=0,
        zero_offload=False,
        lora_dropout=0.0,
        drop_path=0.0,
        warmup_ratio=0.0,
        scheduler="constant",
        eval_samples=rows,
        eval_steps=25,
        save_steps=100,
        patience=None,
    )


def few_updates(updates):
    """What to say of a released recipe with fewer than `FEW_UPDATES` updates."""
    return (
        f"{updates} updates: under {FEW_UPDATES} the released learning rate teaches next to nothing; "
        "ivlkit.suggest(model, data) takes a rate and epochs for small sets"
    )


def _check_known(name, keys):
    known = {field.name for field in fields(Recipe)}
    for key in keys:
        if key not in known:
            todo = f"; {found}" if (found := meant(key)) else ""
            raise RecipeError(f"recipe {name}: unknown field {key!r}; help(ivlkit.recipe) lists the fields{todo}")


def meant(key):
    """What to write for a field as another trainer calls it, as text; "" where nothing is near."""
    known = {field.name for field in fields(Recipe)}
    ours = key if key in known else _TABLES["elsewhere"].get(key)
    return f"write {ours}" if ours else _nearest(key, known).removeprefix("; ")


def _nearest(word, known):
    parts = f"-{word}", f"{word}-"
    holding = [name for name in known if name.endswith(parts[0]) or name.startswith(parts[1])]  # none is nearer
    match = holding or difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {' or '.join(map(repr, match))}?" if match else ""
