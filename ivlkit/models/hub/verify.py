"""Whether a model works here: its files, its tensors, its tokenizer, six replies and a loss; made to be pasted.

What the released models should answer was written down without them: nobody has run these questions on the released
weights yet, and the report says so. For nano they are run by the tests.
"""

import json
import math
import re
import time
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from ...data.collate import collate, normalise_tiles
from ...data.encode import encode
from ...data.rows.records import IMAGE_PLACEHOLDER, Record, Turn
from ...errors import CheckpointError
from ...hardware import machine
from ...views import shown
from ..families import find_model
from ..layouts.configuration import has_lora, read_released_config
from ..layouts.weight_files import read_headers, read_weight_files
from ..load import check_released_shapes, load, read_model
from ..processor import load_processor
from .download import read_record
from .files import first_line

DATA = Path(__file__).parents[1] / "verify_data"
MAX_NEW_TOKENS = 48
# {template: {special token: its number}} of the released tokenizers.
RELEASED_IDS = json.loads((DATA / "token_ids.json").read_text(encoding="utf-8"))
NEVER_ASKED = (
    "These questions were never run on the released weights before: a wrong reply may be the question's fault."
)
_SPECIAL = ("<img>", "</img>", "<IMG_CONTEXT>", "<ref>", "</ref>", "<box>", "</box>")


@dataclass(frozen=True)
class Check:
    """One thing looked at. `ok` is None for what could not be decided, or is only a figure."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Answered:
    """A question about a bundled picture, the reply, and the words of which one was expected."""

    picture: str
    question: str
    reply: str
    expected: tuple[str, ...]

    @property
    def ok(self):
        """Whether one of the expected words stands in the reply, as a word of its own."""
        words = "|".join(re.escape(word) for word in self.expected)
        return re.search(rf"(?<!\w)(?:{words})(?!\w)", self.reply, flags=re.IGNORECASE) is not None


@dataclass(frozen=True)
class Verification:
    """What `verify` found; print it and paste it. `ok` is False if any check failed."""

    model: str  # "2b, Mini-InternVL-Chat-2B-V1-5"
    revision: str  # commit hash, or why it is unknown
    checks: tuple[Check, ...]
    answers: tuple[Answered, ...] = ()
    note: str = ""
    machine: object = field(default=None, repr=False)

    @property
    def ok(self):
        """No check failed."""
        return all(check.ok is not False for check in self.checks)

    def __str__(self):
        marks = {True: "ok", False: "FAILED", None: "-"}
        lines = [f"ivlkit verify {self.model}: {'works here' if self.ok else 'DOES NOT WORK'}", ""]
        lines += [f"revision    {self.revision}"]
        lines += [f"{check.name:<12}{marks[check.ok]:<7} {check.detail}" for check in self.checks]
        lines += ["", *(_line(answer) for answer in self.answers)] if self.answers else []
        lines += ["", self.note] if self.note else []
        return "\n".join([*lines, "", str(self.machine)])

    def to_dict(self):
        """The same as plain values, ready for `json.dumps`."""
        answers = [asdict(answer) | {"ok": answer.ok} for answer in self.answers]
        plain = {"model": self.model, "revision": self.revision, "ok": self.ok, "note": self.note, "answers": answers}
        return plain | {"checks": [asdict(check) for check in self.checks], "machine": self.machine.to_dict()}

    _repr_html_ = shown("model:verification_html")


def _line(answer):
    reply = " ".join(answer.reply.split())[:80]
    return f"{'ok' if answer.ok else 'WRONG':<6} {answer.picture}: {answer.question} → {reply}"


def verify(name, *, device=None):
    """Look at a model's files, tensors and tokenizer, ask it six questions, and measure the loss of a stored answer.

    A model that is broken gives a report with failed checks, not an error.

    Args: name: a key or a model folder; device: as in `load`.
    Returns: `Verification`: print it; `.ok`, `.checks`, `.answers`, `.to_dict()`.
    Raises: CheckpointError if there is no such model or folder.
    """
    folder = find_model(name)
    processor = lru_cache(lambda: load_processor(folder))  # read once by all checks; what it raises is theirs
    looks = {"files": _check_files, "config": _check_config, "tensors": _check_tensors, "tokenizer": _check_tokenizer}
    checks = [_guarded(name, look, folder, processor) for name, look in looks.items()]
    family = processor().family if checks[1].ok else None
    answers, asked = (), [Check("replies", None, "not asked: mend what failed first")]
    kind = questions()["released" if family is None or family.hub_id else "nano"]
    if all(check.ok is not False for check in checks[1:]):
        answers, asked = _ask(folder, kind, device)
    model = f"{family.key}, {family.name}" if family else Path(folder).name
    note = NEVER_ASKED if kind["ran_on_weights"] == "not yet" else ""
    return Verification(model, _revision(folder), (*checks, *asked), answers, note, machine())


@lru_cache(maxsize=1)
def questions():
    """What is asked, by kind of model: {"released": …, "nano": …}, from `verify_data/questions.json`."""
    return json.loads((DATA / "questions.json").read_text(encoding="utf-8"))


def _guarded(name, look, *values):
    """Run one check; whatever it raises is its finding, for a broken model can break anything."""
    try:
        return Check(name, *look(*values))
    except Exception as error:
        kind = "" if isinstance(error, CheckpointError) else f"{type(error).__name__}: "
        return Check(name, False, kind + first_line(error))


def _revision(folder):
    try:
        record = read_record(folder)
    except CheckpointError:
        return "unknown: the record is broken"
    return record["revision"] if record else "not recorded: no download wrote this folder"


def _check_files(folder, _):
    record = read_record(folder)
    if record is None:
        size = sum(path.stat().st_size for path in read_weight_files(folder))
        return None, f"{size / 1e6:,.1f} MB of weights; no record of hashes to compare with"
    for file in record["files"]:
        if not file.has_size(folder / file.name):
            return False, f"{file.name} is missing or cut; expected {file.size:,} bytes; remove it and download again"
        if not file.has_digest(folder / file.name):
            return False, f"{file.name} is not {file.digest}; remove it and download again"
    size = sum(file.size for file in record["files"])
    return True, f"{len(record['files'])} files, {size / 1e6:,.1f} MB, sizes and hashes as downloaded"


def _check_config(folder, processor):
    family = processor().family
    return True, f"{family.vision} + {family.language}, template {read_released_config(folder)['template']}"


def _check_tensors(folder, processor):
    family = processor().family
    kinds = ", ".join(sorted({kind for _, kind in read_headers(read_weight_files(folder)).values()}))
    if has_lora(read_released_config(folder)):
        return None, f"{kinds}; a LoRA inside; its shapes are checked when it is loaded"
    config, _, hf = read_model(folder)
    shapes = check_released_shapes(folder, config, hf)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    if family.hub_id and abs(parameters / 1e9 - family.parameters) > 0.05 * family.parameters:
        return False, f"{parameters / 1e9:.3f} B parameters; expected {family.parameters} B: another model"
    return True, f"{len(shapes)} tensors, {parameters / 1e9:.3f} B parameters, {kinds}; every key and shape as expected"


def _check_tokenizer(folder, processor):
    processor = processor()
    ids = {token: processor.token_id(token) for token in _SPECIAL}
    expected = RELEASED_IDS[processor.template.name] if processor.family.hub_id else {}
    for token, number in expected.items():
        if processor.token_id(token) != number:
            return False, f"{token} is {processor.token_id(token)}; expected {number}; copy the tokenizer's files again"
    vocabulary, largest = read_released_config(folder)["llm_config"]["vocab_size"], max(ids.values())
    if largest >= vocabulary:
        return False, f"ids up to {largest}; expected below vocab_size {vocabulary}; another model's tokenizer?"
    return True, f"{len(ids | expected)} special tokens, <IMG_CONTEXT> is {ids['<IMG_CONTEXT>']} of {vocabulary:,}"


def _ask(folder, kind, device):
    """(answers, checks) of the loaded model."""
    loaded = []
    check = _guarded("load", _load, folder, device, loaded)
    if not loaded:
        return (), [check]
    answers = []
    replies = _guarded("replies", _check_replies, loaded[0], kind, answers)
    loss = _guarded("loss", _check_loss, loaded[0], kind["stored_answer"])
    loaded[0].release()
    return tuple(answers), [check, replies, loss]


def _load(folder, device, loaded):
    start = time.perf_counter()
    loaded.append(load(folder, device=device))
    model = loaded[0].model
    where = f"{str(model.dtype).removeprefix('torch.')} on {model.device}"
    return True, f"{where}, {time.perf_counter() - start:.1f} s"


def _check_replies(vlm, kind, answers):
    start = time.perf_counter()
    for one in kind["questions"]:
        reply = vlm.chat(one["question"], DATA / one["picture"], max_new_tokens=MAX_NEW_TOKENS)
        answers.append(Answered(one["picture"], one["question"], reply.text, tuple(one["expected"])))
    right, needed = sum(answer.ok for answer in answers), kind["needed"]
    seconds = time.perf_counter() - start
    return right >= needed, f"{right} of {len(answers)} with an expected word, {needed} needed, {seconds:.1f} s"


def _check_loss(vlm, stored):
    loss, limit = stored_loss(vlm, stored), stored["largest_loss"]
    chance = math.log(vlm.model.config.text_config.vocab_size)
    found = f"{loss:.4f} nats a token on a stored answer"
    return loss <= limit, f"{found}; expected at most {limit}, {chance:.1f} is chance"


@torch.inference_mode()
def stored_loss(vlm, stored):
    """Mean cross-entropy of a stored answer's tokens, closing token included, as in training.

    Args: stored: {"picture", "question", "answer"}.
    """
    turns = (Turn("user", f"{IMAGE_PLACEHOLDER}\n{stored['question']}"), Turn("assistant", stored["answer"]))
    record = Record(id=0, turns=turns, images=(DATA / stored["picture"],), where="stored answer")
    batch = collate([encode(record, vlm.processor)], pad_token_id=vlm.tokenizer.pad_token_id)
    batch = {key: tensor.to(vlm.model.device) for key, tensor in batch.items()}
    pixel_values = normalise_tiles(batch.pop("tiles"), dtype=vlm.model.dtype)
    return vlm.model(pixel_values=pixel_values, **batch).loss.item()
