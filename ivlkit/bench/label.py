"""Label pictures by keys alone, in a notebook: the picture never waits for a model, and what is saved stays saved.

The browser (label.js) shows pictures and takes keys; here are the threads that send it pictures and suggestions ahead,
and the table that its answers go to. A message to the browser is a dict: `picture`, `suggest`, `original`, `tiles`,
`saved`, `beat`, `stop` or `note` says which; one from it has `do`: "want", "original", "tiles" or "answer".
"""

import getpass
import io
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..data.groups import file_digest
from ..data.importing.tables import PICTURE_SUFFIXES, choose_columns, row_from_cells, table_cells, visible_files
from ..data.rows.formats import without_places
from ..data.rows.media import UPRIGHT_ON_WHITE, open_image
from ..data.rows.records import numbered_rows
from ..data.splits import default_file, read_split
from ..errors import DataError, IvlkitError
from ..models.vlm import VLM
from ..show.html import fragment, text_html
from ..show.live import WIDGET_VIEW
from ..show.tiles import tiles_figure
from .labels import ANSWERED, Labels, answer_text, answer_values

PREVIEW_PX = 1600  # longest side of what the browser holds ahead; the original comes when it is zoomed into
AHEAD = 16  # pictures, from the present one on, that a model is asked about before they are reached
BEAT_SECONDS = 0.5  # the browser stops after 1.5 s without one
PATIENCE_SECONDS = 600  # without a word of the browser, until a server would only store up heartbeats for a closed page
_open = {}  # table → the `Labelling` that writes it


class Item(NamedTuple):
    """A picture to be labelled; `suggestion` is filled in, unless `blind` hides it until the answer is saved."""

    picture: str | os.PathLike
    question: str = ""
    suggestion: str | None = None
    confidence: float | None = None
    blind: bool = False


def label(
    pictures,
    question=None,
    *,
    vlm=None,
    choices=None,
    columns=None,
    boxes=False,
    to="labels.csv",
    suggest=None,
    by=None,
):
    """Label pictures in the notebook: type, press Enter, see the next one. `ivl.open_data(to)` opens what was labelled.

    Opened again it goes on where it was. Rows that `labels.csv.split.csv` has in its part "test" are labelled blind.
    Keys stand below the picture; docs/labelling.md tells more.

    Args:
        pictures: a folder, a list of paths, or of `Item`s or tuples (picture, question, suggestion, confidence, blind).
        question: what is asked about each; needed unless every item has its own.
        vlm: a model whose replies are filled in as they come; anything with `chat(question, images=…)`.
        choices: the answers that there are; keys 1 to 9 choose.
        columns: names; each is filled in, and the answer is JSON: {"make": "Audi", "colour": null}.
        boxes: rectangles are drawn and named: <ref>cat</ref><box>[[x1, y1, x2, y2]]</box>, in 0–1000 of the picture.
        to: the table, a .csv in or above the pictures' folder; its journal lies beside it.
        suggest: instead of `vlm`: {picture: answer or (answer, confidence)}, or a table with `file`, `answer` and
            maybe `confidence`, such as `ivl.predict` writes. Names may also start from the pictures' folder.
        by: who labels; default the user's name.
    Raises: DataError for a picture outside the table's folder or a table of another program; IvlkitError without
    anywidget.
    """
    if columns and (choices or boxes):
        raise DataError("columns beside choices or boxes", "one of them", "leave out the others", where="ivl.label")
    widget, path = _widget_class(), Path(os.path.abspath(to))
    for name, given in {"choices": choices, "columns": columns}.items():
        if isinstance(given, str):  # a list would be made of its letters
            todo = f"write {name}={[part.strip() for part in given.split(',')]}"
            raise DataError(f"{name}={given!r}", "a list", todo, where="ivl.label")
    items = _items(pictures, question, suggest, path.parent)
    if before := _open.pop(path, None):
        before.close()
    labels = Labels(path, by=_user() if by is None else by)
    choices = [str(choice).strip() for choice in choices or ()]
    form = {"columns": list(columns or ()), "choices": choices, "boxes": boxes}
    _open[path] = Labelling(items, labels, form, vlm=vlm, widget=widget)
    return _open[path]


def _widget_class():
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise IvlkitError(
            "ivl.label: anywidget is not installed; expected it beside JupyterLab; run: pip install anywidget, then "
            "restart the kernel and reload the page"
        ) from error

    class LabelWidget(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("label.js")
        rows = traitlets.List().tag(sync=True)
        setup = traitlets.Dict().tag(sync=True)

    return LabelWidget


def _user():
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return ""


def _items(pictures, question, suggest, folder):
    """`Item`s with absolute paths, each with a question and what is suggested for it."""
    starts = [folder]  # of names in a table of suggestions, beside its own
    if isinstance(pictures, (str, os.PathLike)):
        names = visible_files(pictures) if os.path.isdir(pictures) else ()
        starts.append(Path(pictures))
        pictures = [Path(pictures, name) for name in names if name.suffix.lower() in PICTURE_SUFFIXES - {".pdf"}]
    items = [Item(*one) if isinstance(one, tuple) else Item(one) for one in pictures]
    items = [item._replace(picture=os.path.abspath(item.picture), question=item.question or question) for item in items]
    items = [item._replace(question=without_places(item.question or "").strip()) for item in items]  # as a table has it
    items = list({(item.picture, item.question): item for item in items}.values())
    if not items:
        raise DataError("no picture", "some", "check the folder", where="ivl.label")
    for item in items:
        if not item.question:
            raise DataError("no question", "one", 'say question="What is written?"', where=item.picture)
        if os.path.relpath(item.picture, folder).startswith(".."):
            todo = f"write to={str(Path(item.picture).parent.parent / 'labels.csv')!r}"
            raise DataError(f"not below {folder}, the table's folder", "it there", todo, where=item.picture)
    known = {} if suggest is None else _suggested(suggest, starts)
    if known and known.keys().isdisjoint(item.picture for item in items):
        found = f"suggest names none of the pictures, but {next(iter(known))}"
        raise DataError(found, f"names such as {items[0].picture}", "correct them", where="ivl.label")
    found = (known.get(item.picture, (item.suggestion, item.confidence)) for item in items)
    found = ((text if text is None else str(text), sure) for text, sure in found)
    return [item._replace(suggestion=text, confidence=sure) for item, (text, sure) in zip(items, found, strict=True)]


def _suggested(suggest, starts):
    """{absolute path: (answer, confidence)} of a mapping or a table; names may also be as seen from `starts`."""
    if isinstance(suggest, Mapping):
        told = {name: one if isinstance(one, tuple) else (one, None) for name, one in suggest.items()}
        starts = [Path(), *starts]
    else:
        told = dict(_told_in(suggest))
        starts = [Path(suggest).absolute().parent, *starts]
    found = {}
    for name, one in told.items():
        files = [start / name for start in starts]
        found[os.path.abspath(next(filter(os.path.exists, files), files[0]))] = one
    return found


def _told_in(table):
    """Yield (name of a picture, (answer, confidence)) of the rows that `predict` or a person wrote, but empty ones."""
    table, columns = Path(table), None
    is_json = table.suffix.lower() in (".jsonl", ".ndjson")
    for where, cells in numbered_rows(table) if is_json else table_cells(table, table.name)[2]:
        if isinstance(cells, DataError):
            raise cells
        columns = columns or choose_columns(list(cells), f"{table.name}:1", question="Suggested?")
        if cells.get(columns.answer[0]) not in (None, ""):
            row, sure = row_from_cells(cells, columns, where), cells.get("confidence")
            yield row["image"], (row["conversations"][1]["value"], float(sure) if sure else None)


def _reply(vlm, item):
    """(reply, its confidence or None) of a model, which may be anything with `chat`."""
    if not isinstance(vlm, VLM):
        return str(vlm.chat(item.question, images=item.picture)), None
    (reply,) = vlm.chat_batch([item.question], [item.picture], probabilities=True)
    return str(reply), reply.confidence


class Labelling:
    """What a cell shows; `receive` takes the browser's messages, threads send pictures, suggestions and a heartbeat."""

    def __init__(self, items, labels, form, *, vlm, widget):
        self.items, self.labels, self.form, self.vlm = items, labels, form, vlm
        self.files = [Path(os.path.relpath(item.picture, labels.path.parent)).as_posix() for item in items]
        self.suggested = {n: (item.suggestion, item.confidence) for n, item in enumerate(items) if item.suggestion}
        self.rules = getattr(getattr(vlm, "processor", None), "picture_rules", UPRIGHT_ON_WHITE)
        self.rows = [self._row(number) for number in range(len(items))]
        self.numbers = {(row["file"], row["question"]): number for number, row in enumerate(self.rows)}
        after = self.numbers.get(labels.last, -1) + 1
        order = [*range(after, len(items)), *range(after)]
        self.at = next((number for number in order if not self.rows[number]["how"]), order[0])
        setup = form | {"start": self.at, "key": str(labels.path), "tiles": hasattr(vlm, "processor")}
        self.widget = widget(rows=self.rows, setup=setup)
        # ipykernel 7.4 answers a widget where it was made, behind the running cell; without this JupyterLab's own
        # subshell takes its messages meanwhile. Elsewhere the name means nothing, and the browser queues.
        self.widget.comm._reply_subshell_for = None
        self.widget.on_msg(lambda _, message, __: self.receive(message))
        self.closed, self.moved, self.wanted = threading.Event(), threading.Event(), queue.SimpleQueue()
        self.waiting, self._handle, self._saving = set(), None, threading.Lock()
        part_of, _ = read_split(default_file(labels.path))
        self._tests = {digest for digest, part in part_of.items() if part == "test"}
        self.heard = time.monotonic()

    def _row(self, number):
        file, question = self.files[number], self.items[number].question
        line = self.labels.state.get((file, question), {"answer": "", "how": None})
        values = self._values(line["answer"]) if line["answer"] else None
        return {"file": file, "question": question, "values": values, "how": line["how"]}

    def _values(self, text):
        """What the browser holds of an answer; "Dog." is the choice "dog"."""
        plain = text.strip(" .").casefold()
        if text not in self.form["choices"]:  # there may be "a" beside "A"
            text = next((choice for choice in self.form["choices"] if choice.casefold() == plain), text)
        return answer_values(text, self.form["columns"], boxes=self.form["boxes"])

    def close(self):
        """Stop the threads; the browser says that the table is open elsewhere."""
        with self._saving:
            self.closed.set()
        self.wanted.put(None)
        self.widget.send({"stop": "This table was opened again, in another cell."})

    # to the browser

    def _ipython_display_(self):
        from IPython.display import display

        is_first, view = self._handle is None, self.widget._repr_mimebundle_()[0][WIDGET_VIEW]
        display({WIDGET_VIEW: view, "text/plain": "In a running notebook pictures are labelled here."}, raw=True)
        self._handle = display(self._line(), display_id=True, raw=True)
        if is_first:
            for work in (self._beat, self._send_wanted, *([self._ask] if self.vlm else [])):
                threading.Thread(target=work, daemon=True).start()

    def _line(self):
        """What the saved notebook keeps, as a bundle."""
        how = [row["how"] for row in self.rows]
        unusable = f", {how.count('unusable')} unusable" if "unusable" in how else ""
        said = f"{sum(one in ANSWERED for one in how):,} of {len(how):,} labelled{unusable}"
        html = fragment(f"<div>{text_html(f'{said}: {self.labels.path.name}')}</div>")
        return {"text/html": html, "text/plain": said}

    def _beat(self):
        while not self.closed.wait(BEAT_SECONDS):
            if time.monotonic() - self.heard < PATIENCE_SECONDS:
                self.widget.send({"beat": True})

    def _send_wanted(self):
        while (wanted := self.wanted.get()) is not None:
            kind, number = wanted
            self.waiting.discard(wanted)
            try:
                message, image = self._picture(kind, number)
            except Exception as error:  # whatever a damaged file raises is told in the picture's place
                self.widget.send({kind: number, "error": str(error)})
                continue
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=90)
            self.widget.send(message, [buffer.getvalue()])

    def _picture(self, kind, number):
        small = PREVIEW_PX if kind == "picture" else None
        image = open_image(self.items[number].picture, self.files[number], rules=self.rules, at_least_px=small)
        if kind == "tiles":
            image = tiles_figure(image, self.vlm.processor).to_image()
        elif small:
            image.thumbnail((small, small))
        return {kind: number} | (self._suggestion(number) if small else {}), image

    def _suggestion(self, number):
        """What may be filled in for a picture: nothing for a blind one."""
        text, confidence = self.suggested.get(number, (None, None))
        if text is None or self._is_blind(number):
            return {"suggestion": None}
        return {"suggestion": self._values(text), "confidence": confidence}

    def _is_blind(self, number):
        item = self.items[number]
        return item.blind or (bool(self._tests) and file_digest(item.picture) in self._tests)

    def _ask(self):
        """Ask the model about the present picture and those ahead, as long as there are any."""
        while not self.closed.is_set():
            self.moved.clear()
            ahead = [*range(self.at, len(self.items)), *range(self.at)]
            open_rows = [number for number in ahead if not self.rows[number]["how"]][:AHEAD]
            number = next((number for number in open_rows if number not in self.suggested), None)
            if number is None:
                self.moved.wait(1)
                continue
            item = self.items[number]
            try:
                self.suggested[number] = _reply(self.vlm, item)
                self.widget.send({"suggest": number} | self._suggestion(number))
            except IvlkitError as error:  # of this picture
                self.suggested[number] = None, None
                self.widget.send({"note": f"no suggestion: {error}"})
            except Exception as error:
                self.widget.send({"note": f"no more suggestions: {type(error).__name__}: {error}"})
                raise

    # from the browser

    def receive(self, message):
        """One message of the browser; an answer that can't be kept stops it with the reason."""
        self.heard = time.monotonic()
        if message["do"] == "answer":
            with self._saving:
                self._answer(message)
        elif message["do"] == "want":
            self.at = message["at"]
            self.moved.set()
            for number in message["numbers"]:
                self._want("picture", number)
        else:
            self._want(message["do"], message["number"])

    def _want(self, *wanted):
        """Send it once, however often it was asked for meanwhile."""
        if wanted not in self.waiting:
            self.waiting.add(wanted)
            self.wanted.put(wanted)

    def _answer(self, message):
        """Keep an answer and confirm it, for a blind row with what was suggested."""
        if self.closed.is_set():  # the browser keeps it for the cell that has the table now
            return
        number = self.numbers.get((message["file"], message["question"]))  # None: of a session with other pictures
        suggested, confidence = self.suggested.get(number, (None, None))
        told = {"suggested": suggested or "", "confidence": "" if confidence is None else confidence}
        told["answer"] = answer_text(message["values"] or [], self.form["columns"])
        try:
            self.labels.add(message["file"], message["question"], id=message["id"], how=message["how"], **told)
        except (IvlkitError, OSError) as error:
            self.widget.send({"stop": str(error)})
            return
        reply = {"saved": message["id"], "number": number}
        if number is not None:
            self.rows[number] |= self._row(number)
            reply |= {"row": self.rows[number], "reply": suggested if self._is_blind(number) else None}
        self.widget.send(reply)
        if self._handle is not None:
            self._handle.update(self._line(), raw=True)
