"""Answers given by hand, on disk: a journal that is only added to, and a table written whole after each answer.

`labels.csv` opens with `ivl.open_data`. `labels.csv.journal.jsonl` beside it holds every step: an answer given, taken
back or corrected, a picture skipped or called unusable. What any earlier session said stays, whichever pictures the
present one shows.
"""

import csv
import datetime
import hashlib
import io
import json
import os
import re
from pathlib import Path

from ..data.files import write_whole
from ..data.importing.tables import table_rows
from ..data.rows.boxes import box_text, named_boxes
from ..errors import DataError

ANSWERED = TYPED, *_ = ("typed", "accepted", "corrected")  # beside these a step is one of
UNUSABLE, SKIPPED, UNDONE = "unusable", "skipped", "undone"
FIELDS = ("file", "question", "answer", "how", "suggested", "confidence", "by", "at")
JOURNAL = ".journal.jsonl"
_MARK = re.compile("<+(/?(?:ref|box))>+")  # what a box's word can't hold: it would close its own


class Labels:
    """What is known of every (file, question), and its two files.

    Args: path: of the table, a .csv; by: who answers.
    Raises: DataError for a table that another program made, or a broken journal.
    """

    def __init__(self, path, *, by=""):
        self.path, self.by = Path(os.path.abspath(path)), by
        if self.path.suffix.lower() != ".csv":
            raise DataError(f"{path}", "a table's name that ends in .csv", 'write to="labels.csv"', where="ivl.label")
        self.journal = self.path.with_name(self.path.name + JOURNAL)
        self.state, self.ids, self.last, self._told = {}, set(), None, set()
        for line in _whole_lines(self.journal):
            self._apply(line)
        self._digest = _digest(self.path)
        self._take_edits()

    def add(self, file, question, *, id, how, **cells):
        """Keep one step for good; one that is known by its `id` is not kept twice. `cells` are other FIELDS.

        Raises: DataError if the table was changed by another program: it stays as it is, the journal has the step.
        """
        if id not in self.ids:
            at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            known = {"file": file, "question": question, "how": how, "by": self.by, "at": at, "id": id}
            line = dict.fromkeys(FIELDS, "") | known | cells
            self._apply(line)
            self._append(line)
        self.write()

    def write(self):
        """The table of all answers, whole. Raises: DataError if another program changed it meanwhile."""
        if _digest(self.path) != self._digest:
            raise DataError(
                f"{self.path}: another program changed it, so nothing was written over it; expected it as it was; run "
                f"the cell again, which takes what is new in both ({self.journal.name} has your answers)"
            )
        text, rows = io.StringIO(), [line for line in self.state.values() if line["how"] in ANSWERED]
        writer = csv.DictWriter(text, FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        if rows or self._digest:
            write_whole(self.path, text.getvalue())
            self._digest = _digest(self.path)

    def _apply(self, line):
        key = line["file"], line["question"].strip()  # as a table gives it back
        self.ids.add(line["id"])
        self._told |= {(*key, line["answer"]), (*key, line["answer"], line["at"])}
        self.last = key
        if line["how"] == UNDONE:
            self.state.pop(key, None)
        elif line["how"] != SKIPPED:
            self.state[key] = line

    def _append(self, line):
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        with open(self.journal, "ab") as file:
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _take_edits(self):
        """An answer in the table that the journal never held at that time was written there by hand: it counts."""
        if self._digest is None:
            return
        for where, row in table_rows(self.path, image="file", question="question", answer="answer")[1]:
            if isinstance(row, DataError):
                raise row
            if lost := set(row) - {*FIELDS, "id", "image", "conversations"}:
                todo = 'remove the column, or write to another table (to="labels_2.csv")'
                raise DataError(f"a column {min(lost)!r}", f"only {', '.join(FIELDS)}", todo, where=where)
            asked, told = (turn["value"] for turn in row["conversations"])
            key = row["image"], asked.removeprefix("<image>\n")
            seen = (*key, told, row["at"]) if row.get("at") else (*key, told)
            if seen not in self._told and told != self.state.get(key, {}).get("answer"):
                told_by = {name: row[name] for name in FIELDS[3:] if row.get(name)} if key not in self.state else {}
                last = self.last
                self.add(*key, id=f"{self._digest}:{where}", **{"how": TYPED} | told_by | {"answer": told})
                self.last = last


def _whole_lines(path):
    """The lines of a journal; a last one that a kill cut off is removed from the file."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            step = json.loads(line)
            if not {*FIELDS, "id"} <= step.keys():
                raise ValueError("a field is missing")
        except (ValueError, AttributeError) as error:
            said = f"broken ({error})", "one step of labelling", "remove the line"
            raise DataError(*said, where=f"{path}:{number}") from error
        yield step


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


# What is typed and drawn ↔ the answer as text -----------------------------------------------------------------------


def answer_text(values, columns=()):
    """What the browser holds as an answer: ["17"] → "17"; boxes → <ref>cat</ref><box>[[10, 20, 300, 400]]</box>.

    Args: values: one text; a text for each of several `columns`, which give JSON; or boxes [word, x1, y1, x2, y2].
    """
    if values and isinstance(values[0], list):
        return "".join(box_text(_MARK.sub(r"\1", word).strip(), box) for word, *box in values)
    texts = [value.strip() or None for value in values]
    if columns:
        return json.dumps(dict(zip(columns, texts, strict=True)), ensure_ascii=False) if any(texts) else ""
    return texts[0] or "" if texts else ""


def answer_values(text, columns=(), *, boxes=False):
    """The other way. Of a text that is not JSON the whole stands in the first column."""
    if boxes and (found := [[name, *map(_thousandths, box)] for name, box in named_boxes(text)]):
        return found
    if not columns:
        return [text]
    try:
        cells = dict(json.loads(text))
        return ["" if cells.get(name) is None else str(cells[name]) for name in columns]
    except (ValueError, TypeError):
        return [text, *[""] * (len(columns) - 1)]


def _thousandths(number):
    return round(min(1000.0, max(0.0, number)))  # of inf, which many digits are, too
