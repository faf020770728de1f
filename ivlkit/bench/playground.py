"""Write a row and see at once what training would make of it: its tokens, its tiles, what the doctor says of it.

Nothing here decides anything: the row goes as a line of JSON through the readers, the encoder, the collator and the
doctor that a run uses. nano can also be taught the row, a step at a time, on a copy.
"""

import copy
import hashlib
import json
import os
import tempfile
from pathlib import Path

from ..data.checking.doctor import diagnose
from ..data.checking.findings import ERROR
from ..data.datasets.opening import open_data
from ..data.files import write_if_changed
from ..data.importing.tables import TABLE_SUFFIXES
from ..data.rows.formats import with_places
from ..data.rows.records import read_records
from ..errors import DataError, IvlkitError
from ..models.processor import load_processor
from ..models.vlm import VLM
from ..show.findings import problem_table
from ..show.html import fragment, text_html
from ..show.live import Live, make_controls
from ..show.tokens import tokens_html
from ..training.loop.build import build_training
from ..training.loop.train import train_steps
from ..training.recipes import overfitting, recipe

SAID = 10  # last replies and steps that are shown
QUESTION, ANSWER = "What is in the picture?", "A cat."


def playground(model, to="mine.jsonl", *, pictures=(), question=QUESTION, answer=ANSWER):
    """Write a row by hand: below the fields stand its line, the doctor's findings, and every token with its use.

    Args:
        model: a `VLM`, a processor, or a model's name, of which no weights are loaded. With a `VLM` one can ask; nano
            can be taught the row, one step a click, on a copy with a fresh adapter.
        to: the JSONL that "append" adds the row to. Uploaded pictures are kept beside it, in `mine_pictures/`.
        pictures: a path or several, to begin with; question, answer: the same. `<image>` in the question says where a
            picture goes, without it the pictures come first.
    Returns: `Playground`; a notebook shows it.
    Raises: DataError for a `to` that would be read as a table or a meta file.
    """
    if Path(to).suffix.lower() in (*TABLE_SUFFIXES, ".json"):
        raise DataError(f"{to}", "a name that ends in .jsonl", 'write to="mine.jsonl"', where="ivl.playground")
    pictures = [pictures] if isinstance(pictures, (str, os.PathLike)) else pictures
    return Playground(model, Path(os.path.abspath(to)), pictures, question, answer)


class Playground:
    """A row that is being written. Without ipywidgets set `.question`, `.answer`, `.pictures` and show it again."""

    def __init__(self, model, to, pictures, question, answer):
        self.vlm = model if isinstance(model, VLM) else None
        is_named = isinstance(model, (str, os.PathLike))
        self.processor = load_processor(model) if is_named else getattr(model, "processor", model)
        self.to, self.pictures, self.question, self.answer = to, list(pictures), question, answer
        self.said, self.steps, self._pupil, self._folder = [], None, None, tempfile.TemporaryDirectory()
        self.live = Live(self.to_html)
        self.live.controls = make_controls(self._controls)

    @property
    def line(self):
        """The row as it would stand in the file."""
        folder = self.to.parent
        images = [Path(os.path.relpath(os.path.join(Path.cwd(), path), folder)).as_posix() for path in self.pictures]
        asked = with_places(self.question, len(images))
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": self.answer}]
        row = {"image": images if len(images) > 1 else images[0]} if images else {}
        return json.dumps(row | {"conversations": turns}, ensure_ascii=False)

    def problems(self):
        """What the doctor finds in this row: `Problem`s, errors first."""
        report = diagnose(self._file(), self.processor, root=self.to.parent, workers=1)
        return [problem for problem in report.problems if problem.row is not None]

    def _file(self):
        """The row alone, as a file named as the whole one."""
        path = Path(self._folder.name, self.to.name)
        path.write_text(self.line + "\n", encoding="utf-8", errors="surrogatepass")
        return path

    def append(self):
        """Add the row to the file. Raises: DataError for a row that a run would refuse, or that is there already."""
        if errors := [problem for problem in self.problems() if problem.level == ERROR]:
            raise DataError(f"not appended: {errors[0].found}", errors[0].expected, errors[0].todo, where=self.to.name)
        before = self.to.read_bytes() if self.to.exists() else b""
        if self.line.encode() in before.splitlines():
            raise DataError("the row is there already", "every row once", "change it", where=self.to.name)
        self.to.parent.mkdir(parents=True, exist_ok=True)
        with open(self.to, "ab") as file:
            file.write((b"" if before.endswith(b"\n") or not before else b"\n") + self.line.encode() + b"\n")
        self.said.append((self.to.name, f"row {len(before.splitlines()) + 1:,} was added"))

    def ask(self):
        """Ask the model, or the copy that was taught, and note the reply. Raises: DataError if none was loaded."""
        if self.vlm is None:
            raise DataError("no weights", "a loaded model", "give ivl.load(…) and not a name", where="ivl.playground")
        taught = self._pupil is not None and self._taught == self.line
        name = f"after step {self._pupil.step}" if taught else self.vlm.family.key
        asked = self._reader if taught else self.vlm
        self.said.append((name, asked.chat(self.question, images=self.pictures or None).text))

    def teach(self):
        """One optimiser step on this row, by the loop of a run, with nano-lora's rate; then ask again.

        The first step of a row copies the model and gives the copy a fresh adapter; the model itself stays as it is.
        """
        if self._pupil is None or self._taught != self.line:
            self._begin()
        step = next(self.steps)
        self._pupil.model.eval()
        self.said.append((f"step {step.number}", f"loss before it: {step.loss:.3f}"))
        self.ask()

    def _begin(self):
        data = open_data(self._file(), root=self.to.parent)
        model, adapter = copy.deepcopy((self.vlm.model, self.vlm.adapter))
        pupil = VLM(model, self.processor, self.vlm.config, self.vlm.folder, adapter)
        pupil.merge_adapter()
        plan = overfitting(recipe("nano-lora", packing=False, workers=0, gradient_checkpointing="none"), 1)
        self._pupil, _ = build_training(pupil, self.processor, plan, data)
        self.steps, self._taught, self._reader = train_steps(self._pupil), self.line, pupil

    def to_html(self):
        """The row's line, findings, replies and tokens as they are now."""
        told = ((text_html(who), text_html(text)) for who, text in self.said[-SAID:])
        said = "".join(f"<tr><td>{who}</td><td><b>{text}</b></td></tr>" for who, text in told)
        parts = [f'<div class="dim">{text_html(self.line)}</div><table>{said}</table>']
        parts.append(problem_table(self.problems()) or "<div>The doctor finds nothing.</div>")
        try:
            (record,) = read_records(self._file(), self.to.parent)
            parts.append(tokens_html(record, self.processor))
        except IvlkitError as error:
            parts.append(f'<div class="card bad">{text_html(error)}</div>')
        return fragment("".join(parts))

    # in a notebook

    def _ipython_display_(self):
        self.live.show()

    def _controls(self, widgets):
        wide = {"layout": {"width": "480px"}}
        paths = widgets.Textarea(value="\n".join(map(str, self.pictures)), description="pictures", rows=1, **wide)
        upload = widgets.FileUpload(accept="image/*", multiple=True, description="picture")
        question = widgets.Textarea(value=self.question, description="question", **wide)
        answer = widgets.Textarea(value=self.answer, description="answer", **wide)
        upload.observe(lambda change: self._keep(change["new"], paths), "value")
        for control, name in ((paths, "pictures"), (question, "question"), (answer, "answer")):
            control.observe(lambda change, name=name: self._change(name, change["new"]), "value")
        actions = {"append": self.append}
        if self.vlm is not None:
            actions["ask"] = self.ask
            if self.vlm.family.key == "nano":
                actions["teach: one step, ask again"] = self.teach
        buttons = [widgets.Button(description=name, layout={"width": "auto"}) for name in actions]
        for button, action in zip(buttons, actions.values(), strict=True):
            button.on_click(lambda _, action=action: self._do(action))
        return [paths, upload, question, answer, *buttons]

    def _change(self, name, value):
        names = [line.strip() for line in value.splitlines() if line.strip()]
        setattr(self, name, names if name == "pictures" else value)
        self.said.clear()
        self.live.redraw()

    def _keep(self, files, paths):
        """Uploaded pictures as files of their own, named by their bytes."""
        folder = self.to.parent / f"{self.to.stem}_pictures"
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            content = bytes(file["content"])
            name = hashlib.sha256(content).hexdigest()[:20] + Path(file["name"]).suffix.lower()
            write_if_changed(folder / name, content)
            self.pictures.append(os.path.relpath(folder / name))
        paths.value = "\n".join(map(str, self.pictures))

    def _do(self, action):
        try:
            action()
        except IvlkitError as error:
            self.said.append(("not done", str(error)))
        self.live.redraw()
