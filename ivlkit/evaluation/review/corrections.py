"""What a person decided about rows, written as a copy of their own table in which nothing else has changed.

Of a CSV, TSV or JSONL every other byte stays; of a spreadsheet all that openpyxl keeps: formulas, formats, sheets.
"""

import codecs
import io
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ...data.files import replacing, write_whole
from ...data.importing.tables import csv_rows, delimiter_of, encoding_of, shown_sheets, xlsx_table
from ...data.rows.formats import ANSWER_COLUMNS
from ...data.rows.records import parse_line
from ...errors import DataError

LONGEST_CELL = 32_767  # characters: openpyxl would cut the rest off
MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}  # one order of bytes stays as it is


@dataclass(frozen=True)
class Decision:
    """About the truth of one row: "keep", "correct" or "drop"."""

    action: str
    truth: str  # as it was looked at
    answer: str | None = None  # the new truth, of "correct"


@dataclass(frozen=True)
class Corrections:
    """What was written, and where; printed, the difference as a table."""

    path: Path
    changes: tuple  # (source, "correct" or "drop", old truth, new truth or None), in the order of the table

    def __repr__(self):
        lines = [
            f"{source:<20}  {action:<8}{old!r:>24} → {'–' if new is None else repr(new)}"
            for source, action, old, new in self.changes
        ]
        return "\n".join([f"{self.path}: {len(self.changes)} rows changed", *lines])


def write_decisions(table, decisions, *, to=None, answer=None):
    """Write a copy of a table with the truths as decided; all else stays as it is.

    The split that is kept beside the table (labels.csv.split.csv) holds for the copy too: no row changes its part.
    Decisions are kept beside the copy (labels.corrected.csv.decisions.json) and hold when it is written again, until
    another one is made about their row. Remove the copy to begin anew.

    Args:
        table: the .csv, .tsv, .xlsx or .jsonl that the rows came from; it is never changed. In a spreadsheet the cells
            of a dropped row are emptied, so that no other one moves, and formulas have no value until a spreadsheet
            program has saved the copy: the old one might be of an old truth.
        decisions: {source: `Decision`}; a source is "labels.csv:17", a row's first line.
        to: default `labels.corrected.csv` beside it.
        answer: the column of the truth; default the one that holds them.
    Returns: `Corrections`.
    Raises: DataError for a source that is not in the table, where a truth is no longer what was looked at, for a cell
    to be written that a formula fills, and for another copy that is there without its decisions.
    """
    table = Path(table)
    to = Path(to) if to else table.with_name(f"{table.stem}.corrected{table.suffix}")
    if to.resolve() == table.resolve():
        raise DataError(f"{to}: is the table itself; expected a new file; your own is never changed")
    kept = to.with_name(f"{to.name}.decisions.json")
    is_known = to.exists() and kept.exists()
    decisions = (_read_decisions(kept) if is_known else {}) | decisions
    by_line = _by_line(table, decisions)
    wanted = {line: each for line, each in by_line.items() if each.action != "keep"}
    suffix = table.suffix.lower()
    if suffix not in _EDITORS:
        raise DataError(f"{table}: ends with {suffix!r}; expected {', '.join(_EDITORS)}; save it as CSV")
    content = _EDITORS[suffix](table, wanted, answer) if wanted else table.read_bytes()
    if to.exists() and not is_known and to.read_bytes() != content:
        found = f"is there, and what was decided for it is not in {kept.name}"
        raise DataError(found, "a new file", "move it away, or name another with to=…", where=to)
    saved = {source: asdict(decision) for source, decision in decisions.items()}
    write_whole(kept, json.dumps(saved, ensure_ascii=False, indent=1) + "\n")
    with replacing(to) as aside:
        aside.write_bytes(content)
    changes = ((line, each.action, each.truth, each.answer) for line, each in sorted(wanted.items()))
    return Corrections(to, tuple((f"{table.name}:{line}", *change) for line, *change in changes))


def _read_decisions(path):
    """{source: `Decision`} as an earlier call kept them."""
    try:
        return {source: Decision(**each) for source, each in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no decisions ({error}); expected what an earlier call kept; move it away") from error


def _by_line(table, decisions):
    found = {}
    for source, decision in decisions.items():
        name, _, line = source.rpartition(":")
        if name != table.name or not line.isdecimal():
            raise DataError(f"{source}: is no row of {table.name}; expected {table.name}:2 or the like; name its table")
        found[int(line)] = decision
    return found


def _changed(where, found, decision):
    return DataError(
        f"{where}: holds {found!r:.60}, but {decision.truth!r:.60} was looked at; expected the same; the table has "
        "changed since: review it again and write a new file (to=…)"
    )


def _check_found(table, wanted, found):
    for line in sorted(set(wanted) - found):
        raise DataError(f"{table.name}:{line}: no row begins on this line; expected the table that was looked at")


# CSV and TSV ----------------------------------------------------------------------------------------------------------


def _edited_csv(table, wanted, answer):
    content, encoding = table.read_bytes(), encoding_of(table)
    codec = next((name for mark, name in MARKS.items() if content.startswith(mark)), encoding.removesuffix("-sig"))
    delimiter, text = delimiter_of(table, encoding), content.decode(codec, "surrogateescape")
    mark, text = ("\ufeff", text[1:]) if text.startswith("\ufeff") else ("", text)
    rows = list(csv_rows(io.StringIO(text, newline=""), delimiter))
    whole = ((line, cells) for line, _, cells in rows if isinstance(cells, list))
    (_, header), *filled = [(line, cells) for line, cells in whole if any(map(str.strip, cells))]
    edits = _edits(table, dict(filled), [name.strip() for name in header], wanted, answer)
    kept = [mark]
    for line, raw, cells in rows:
        if line not in wanted:
            kept.append(raw)
        elif wanted[line].action == "correct":
            kept.append(_with_cells(raw, cells, edits[line], delimiter))
    try:
        return "".join(kept).encode(codec, "surrogateescape")
    except UnicodeEncodeError as error:
        found = error.object[error.start : error.end]
        raise DataError(f"{table}: {found!r} can't be written as {codec}; save the table as CSV in UTF-8") from error


def _edits(table, rows, header, wanted, answer):
    """{line: {place of a cell: its new text}}. Raises: DataError if a cell is not what was looked at."""
    _check_found(table, wanted, set(rows))
    column = answer or _answer_column(table, rows, header, wanted)
    edits = {}
    for line, decision in wanted.items():
        old, new = (_by_column(text, header, column) for text in (decision.truth, decision.answer or ""))
        cells = dict(zip(header, rows[line], strict=False))
        if new.keys() != old.keys() and decision.action == "correct":
            raise DataError(f"{table.name}:{line}: new fields {list(new)}; expected {list(old)}, a column each")
        for name, text in old.items():
            if cells.get(name, "").strip() != text:
                raise _changed(f"{table.name}:{line}", cells.get(name), decision)
        edits[line] = {header.index(name): text for name, text in new.items() if text != old.get(name)}
    return edits


def _answer_column(table, rows, header, wanted):
    """The column whose cells are the truths of all rows that change; None where these are JSON of several columns."""
    fits = [
        name
        for place, name in enumerate(header)
        if all(rows[line][place : place + 1] and rows[line][place].strip() == wanted[line].truth for line in wanted)
    ]
    usual = [name for name in fits if name.casefold() in ANSWER_COLUMNS]
    if len(fits) == 1 or len(usual) == 1:
        return (usual or fits)[0]
    if all(_object(each.truth) and set(_object(each.truth)) <= set(header) for each in wanted.values()):
        return None
    line, decision = next(iter(wanted.items()))
    if fits:
        raise DataError(f"{table.name}: columns {fits} hold these truths; expected one; name it: answer=…")
    raise _changed(f"{table.name}:{line}", rows[line], decision)


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def _object(text):
    found = _parsed(text)
    return found if isinstance(found, dict) else {}


def _by_column(text, header, column):
    """{column: cell} of a truth."""
    if column is not None:
        return {column: text}
    return {name: "" if value is None else str(value) for name, value in _object(text).items()}


def _with_cells(raw, cells, edits, delimiter):
    """A row's text with new cells; a cell that was quoted stays so, one that has to be is."""
    pattern, spans, place = re.compile(rf'"(?:[^"]|"")*"|[^{re.escape(delimiter)}\r\n]*'), [], 0
    for _ in cells:
        spans.append(pattern.match(raw, place).span())
        place = spans[-1][1] + 1
    for number in sorted(edits, reverse=True):
        begin, end = spans[number]
        text = edits[number]
        if raw[begin : begin + 1] == '"' or re.search(rf'["\r\n{re.escape(delimiter)}]', text):
            text = '"' + text.replace('"', '""') + '"'
        raw = raw[:begin] + text + raw[end:]
    return raw


# JSON lines -----------------------------------------------------------------------------------------------------------


def _edited_jsonl(table, wanted, answer):
    lines = dict(enumerate(io.BytesIO(table.read_bytes()), start=1))
    _check_found(table, wanted, {line for line, text in lines.items() if text.strip()})
    for line, decision in wanted.items():
        where = f"{table.name}:{line}"
        found = parse_line(lines[line], where, table.parent).answer
        if found != decision.truth:
            raise _changed(where, found, decision)
        lines[line] = b"" if decision.action == "drop" else _with_answer(lines[line], where, table.parent, decision)
    return b"".join(lines.values())


def _with_answer(line, where, root, decision):
    """The line with another last answer: of all places that hold the old text the one that changes nothing else."""
    old_record = parse_line(line, where, root)
    for plain in (False, True):
        old, new = (json.dumps(text, ensure_ascii=plain).encode() for text in (decision.truth, decision.answer))
        end = len(line)
        while (begin := line.rfind(old, 0, end)) >= 0:
            edited, end = line[:begin] + new + line[begin + len(old) :], begin
            record = parse_line(edited, where, root)
            same = (record.turns[:-1], record.extra, record.id) == (
                old_record.turns[:-1],
                old_record.extra,
                old_record.id,
            )
            if same and record.answer == decision.answer.strip():
                return edited
    raise DataError(
        f"{where}: the answer {decision.truth!r:.60} can't be replaced as text; expected it once; mend the row"
    )


# XLSX -----------------------------------------------------------------------------------------------------------------


def _edited_xlsx(table, wanted, answer):
    header, lines, _ = xlsx_table(table)
    rows = {line: ["" if cell is None else str(cell) for cell in cells] for line, cells in lines}
    edits = _edits(table, rows, [str(name or "").strip() for name in header], wanted, answer)
    import openpyxl
    from openpyxl.worksheet.cell_range import MultiCellRange

    book, content = openpyxl.load_workbook(table, rich_text=True), io.BytesIO()
    sheet = shown_sheets(book)[0]
    shared = MultiCellRange(" ".join(area for area in sheet.array_formulae.values() if ":" in area))  # of one formula
    for line, decision in wanted.items():
        is_dropped = decision.action == "drop"
        filled = [cell for cell in sheet[line] if cell.value is not None]
        for cell in filled if is_dropped else [sheet.cell(line, place + 1) for place in edits[line]]:
            if cell.coordinate in shared or (cell.data_type == "f" and not is_dropped):
                raise DataError(
                    f"{table.name}:{line}: {cell.coordinate} is filled by a formula, which a new value would remove; "
                    "expected a value; correct what the formula reads, or paste its column as values"
                )
            if is_dropped:
                cell.value = None
            else:
                _fill(cell, edits[line][cell.column - 1], f"{table.name}:{line}")
    book.save(content)
    return content.getvalue()


def _fill(cell, text, where):
    """A number stays one where the new text reads as one: 7, but not "007". What begins with "=" is a text."""
    if len(text) > LONGEST_CELL or re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", text):
        raise DataError(
            f"{where}: {text!r:.60} can't stand in a cell; expected at most {LONGEST_CELL:,} characters and no control "
            "characters; correct it otherwise"
        )
    number = _parsed(text)
    is_number = {type(cell.value), type(number)} <= {int, float} and str(number) == text
    cell.value = number if is_number else text or None
    if isinstance(cell.value, str):
        cell.data_type = "s"


_EDITORS = {".csv": _edited_csv, ".tsv": _edited_csv, ".xlsx": _edited_xlsx, ".jsonl": _edited_jsonl}
