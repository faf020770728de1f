"""What can be wrong with a data set: one entry a kind, with its level, what was expected and what to do.

error: a run refuses the row, or a score would be false. warning: it trains, but hardly as meant. info: worth knowing.
"""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from ...errors import DataError

ERROR, WARNING, INFO = "error", "warning", "info"
LEVELS = (ERROR, WARNING, INFO)
PLACES = 5  # further places that a line about several findings names
WORDINGS = 3  # lines of one kind, if what was found differs


@dataclass(frozen=True)
class Kind:
    """One kind of problem."""

    level: str
    expected: str
    todo: str


KINDS = {
    # the meta file
    "meta": Kind(ERROR, "an entry of the documented fields", "correct the entry"),
    "missing_file": Kind(ERROR, "a JSONL file", "check the path"),
    "no_rows": Kind(ERROR, "one JSON object a line", "was the file written completely?"),
    "declared_length": Kind(ERROR, "as many rows as the meta file's `length`", "complete the file or correct `length`"),
    "missing_root": Kind(ERROR, "the folder of the pictures", "correct `root`"),
    # the line
    "not_utf8": Kind(ERROR, "UTF-8", "save the file as UTF-8"),
    "broken_json": Kind(ERROR, "one JSON object on one line", "mend or remove the line"),
    "not_an_object": Kind(ERROR, "a JSON object with `conversations`", "write the row as an object"),
    "duplicate_key": Kind(WARNING, "every key once; the last one counts", "remove the other"),
    "byte_order_mark": Kind(INFO, "UTF-8 without a mark at the start", "nothing: it is skipped"),
    "crlf": Kind(INFO, "lines that end with \\n", "nothing: it is skipped"),
    "long_line": Kind(WARNING, "lines under 1 MB", "is a picture or a log inside the text?"),
    # the row
    "no_conversations": Kind(ERROR, "a list of turns, a question and its answer at least", "add `conversations`"),
    "bad_turn": Kind(ERROR, "a role and a text", "write the turn like this"),
    "unknown_role": Kind(ERROR, "'human' or 'gpt' (or a first 'system')", "rename the role"),
    "role_order": Kind(ERROR, "the other role", "add, merge or remove turns"),
    "no_answer": Kind(ERROR, "an answer last", "add it or remove the question"),
    "empty_question": Kind(WARNING, "a question", "write it or remove the turn"),
    "empty_answer": Kind(WARNING, "an answer", "write it; as it is the model learns to say nothing"),
    "missing_value": Kind(WARNING, "an answer", "write it or remove the row, unless this is what should be answered"),
    "half_surrogate": Kind(ERROR, "whole characters", "mend the text"),
    "control_character": Kind(WARNING, "text without control characters", "remove it"),
    "outer_whitespace": Kind(INFO, "answers without it", "nothing: it is stripped"),
    "image_field": Kind(ERROR, "a path or a list of paths", "correct `image`"),
    "misnamed_image": Kind(WARNING, "pictures in the field `image`", "rename the field; as it is the row is text only"),
    "placeholder_count": Kind(ERROR, 'one "<image>" in user turns for each picture', "add or remove placeholders"),
    "literal_placeholder": Kind(INFO, "placeholders in questions of rows with pictures", "nothing: it stays text"),
    "image_token": Kind(ERROR, "no image tokens in a text; they stand for pictures", "remove it, or write <image>"),
    "special_token": Kind(WARNING, "no tokens of the chat format in a text", "remove it; the model reads it as one"),
    "refused_field": Kind(ERROR, "fields that these models can use", "remove it or the row"),
    "unused_field": Kind(WARNING, "fields that are read", "remove it"),
    "turn_weight": Kind(ERROR, "true or false in an answer", "correct it"),
    "clip": Kind(ERROR, "[start, end] in seconds inside the video", "correct `clip`"),
    "objects": Kind(ERROR, "names and boxes for <ref-object> and <bbox>", "correct `objects`"),
    "foreign_mark": Kind(WARNING, "<image>, <video>, <ref>…</ref><box>[[x1, y1, x2, y2]]</box>", "write ours instead"),
    "unusable": Kind(ERROR, "a row that can be read", "mend or remove it"),
    "duplicate_row": Kind(WARNING, "every row once", "remove one; to repeat rows use repeat_time"),
    "contradiction": Kind(WARNING, "one answer to one question", "correct one, unless both are right"),
    "answer_spelling": Kind(WARNING, "one spelling of one answer", "correct them; --fix writes the most common one"),
    "duplicate_id": Kind(INFO, "every id once", "nothing: ids are kept, never used"),
    "constant_answers": Kind(WARNING, "answers that differ", "was the right column taken? a model learns to ignore"),
    # boxes
    "unclosed_tag": Kind(WARNING, "<ref>…</ref> and <box>…</box>", "close it"),
    "box_syntax": Kind(WARNING, "<box>[[x1, y1, x2, y2]]</box>, whole numbers", "write it like this"),
    "box_in_pixels": Kind(WARNING, "shares of 1000 of the width and height", "x · 1000 / width, y · 1000 / height"),
    "box_in_fractions": Kind(WARNING, "shares of 1000 of the width and height", "multiply by 1000 and round"),
    "box_unit": Kind(WARNING, "[x1, y1, x2, y2] in shares of 1000 of the width and height", "see what they are"),
    "box_range": Kind(WARNING, "whole numbers from 0 to 1000", "correct the box"),
    "box_order": Kind(WARNING, "left < right and top < bottom", "swap or correct the numbers"),
    # pictures
    "missing_media": Kind(ERROR, "a file there", "check the row's path and the data set's `root`"),
    "remote_media": Kind(ERROR, "a file on this machine", "download it first"),
    "backslash_path": Kind(ERROR, "/ between folders", "write / instead"),
    "empty_media": Kind(ERROR, "a picture", "copy the file again"),
    "unreadable_media": Kind(ERROR, "a whole picture or video", "replace or remove it"),
    "wrong_extension": Kind(WARNING, "a name that says what is inside", "rename it; other tools go by the name"),
    "zeros_at_end": Kind(WARNING, "a picture to its last byte", "was it copied whole? Open it, or copy it again"),
    "turned_picture": Kind(WARNING, "boxes and sizes of the upright picture", "are its boxes right? Save it upright"),
    "dark_depth": Kind(
        WARNING,
        "values that use all 16 bits",
        "scale and save it, unless it is dark; below 4,096 it is read as one of 12 bits",
    ),
    "declared_size": Kind(WARNING, "the size of the file", "correct or remove the declared size"),
    "extreme_aspect": Kind(WARNING, "sides no more than 1 to 100", "crop it; stretched to tiles nothing can be seen"),
    "tiny_picture": Kind(INFO, "28 px a side at least", "is it an icon or a placeholder?"),
    "outside_root": Kind(ERROR, "pictures below `root`", "move them, or name a `root` that holds them"),
    "duplicate_picture": Kind(INFO, "every picture once", "nothing, unless test pictures hide under other names"),
    "alike_pictures": Kind(WARNING, "pictures that differ", "keep them in one part, as `split` and `convert` do"),
    "not_compared": Kind(INFO, "so few pictures that all are decoded", 'pictures="decode" compares all'),
    "leak": Kind(ERROR, "every picture and text in one split only", "move all its rows into one split"),
    "unused_files": Kind(INFO, "pictures that rows name", "are rows missing?"),
    # lengths
    "too_long": Kind(ERROR, "at most max_seq_length tokens", "raise max_seq_length or shorten the row"),
    "fewer_tiles": Kind(INFO, "room for all tiles", "nothing, or raise max_seq_length"),
    "costly_answers": Kind(INFO, "less than a token a character", "nothing: this script takes more of max_seq_length"),
    "no_supervised_token": Kind(ERROR, "an answer to learn", "add the answer"),
}


@dataclass(frozen=True)
class Problem:
    """One finding; as text it is one line."""

    where: str  # "train.jsonl:17", or a file or folder
    level: str
    code: str
    found: str
    expected: str
    todo: str
    source: str = ""  # the entry of the meta file
    row: int | None = None  # of that entry's file, counted from 0
    origin: str = ""  # where `convert` took that row from, "labels.csv:40"

    def __repr__(self):
        return f"{self.where}: {self.level}: {self.found}; expected {self.expected}; {self.todo} [{self.code}]"

    @property
    def message(self):
        """Without level and code, as an exception says it."""
        return f"{self.where}: {self.found}; expected {self.expected}; {self.todo}"


def make_problem(code, where, found, *, expected=None, todo=None, source="", row=None, origin=""):
    """A problem of a kind; what the kind says holds where nothing more exact is given. `origin`: "labels.csv:40"."""
    kind, found = KINDS[code], f"{origin}: {found}" if origin else found
    found = found.encode("utf-8", "backslashreplace").decode()  # half surrogates can't be printed
    return Problem(where, kind.level, code, found, expected or kind.expected, todo or kind.todo, source, row, origin)


def grouped(problems, key):
    """[[problems of an equal key, …], …], in the order of the first of each."""
    groups = {}
    for problem in problems:
        groups.setdefault(key(problem), []).append(problem)
    return list(groups.values())


class Findings:
    """Problems as they come: all are counted and, if asked for, written; the first of each kind are kept."""

    def __init__(self, *, limit, file=None):
        self.limit, self.file = limit, file
        self.counts = Counter()
        self._kept, self._numbers = [], Counter()

    def add(self, problem):
        """Count it, write it, keep it while there are few of its kind."""
        self.count(problem.code, 1)
        self._numbers[problem.code] += 1
        if self._numbers[problem.code] <= self.limit:
            self._kept.append(problem)
        if self.file is not None:
            self.file.write(json.dumps(asdict(problem), ensure_ascii=True) + "\n")

    @contextmanager
    def noted(self, *, source=""):
        """A `DataError` that is raised inside becomes a problem of its kind."""
        try:
            yield
        except DataError as fault:
            said = {"expected": fault.expected, "todo": fault.todo, "source": source}
            self.add(make_problem(fault.code, fault.where, fault.found, **said))

    def count(self, code, number):
        """Count problems that are not kept."""
        self.counts[code] += number

    def wants(self, code):
        """Whether another problem of this kind would be kept or written."""
        return self.file is not None or self._numbers[code] < self.limit

    @property
    def problems(self):
        """The kept ones: errors first, then in the order of the files."""
        return sorted(self._kept, key=lambda problem: LEVELS.index(problem.level))
