"""What `nano` is trained on first: pictures and questions drawn in code, nothing to download.

Print in many fonts, coloured shapes, receipts and charts in fine print, boxes, pairs of pictures, conversations, and a
little text. Handwriting is left out on purpose: it is what a person fine-tunes (`nano/digits`). Pictures are 99 to
672 px wide, so that rows need 1 to 13 tiles. Tasks lie in `printed`, `shapes`, `pairs` and `texts`, their questions in
`tables.yaml`. To add one, write a function `(rng, material) -> Scene` and enter it with its share in `SEEN` or `TOLD`.

Every row is drawn from its own random stream, keyed by seed, split and row. The validation split also has words and
fonts that training never shows. How a question is asked decides whether its answer is a word or a sentence, so that a
reply can be compared with the truth. A careful person can read every picture exactly: no word is written so that its
print could be another one (`ways_to_write`), and print never overlaps.

Words to be read are quoted or begin a line wherever they stand in text, so that the tokenizer spells them.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..data.rows.records import IMAGE_PLACEHOLDER, Record, Turn
from ..errors import DataError
from . import pairs, printed, shapes, texts
from .scene import material_of

MOST_TOLD = 3  # things in a scene told in words


@dataclass(frozen=True)
class Sample:
    """Pictures (RGB) and turns ((question, answer), …) without placeholders."""

    pictures: tuple
    turns: tuple


def make_sample(task, rng, *, split="train"):
    """One `Sample` of a task.

    task: a key of `TASKS`. rng: a `random.Random`; the same state gives the same sample.
    split: "train", or "validation" for words and fonts that training never shows.
    """
    if task not in TASKS:
        raise DataError(f"make_sample: task {task!r}, expected one of {', '.join(TASKS)}; choose one")
    return TASKS[task](rng, material_of(split))


class Curriculum:
    """Rows of the curriculum, drawn when asked for: `len`, `[row]` → `Record`; nothing is written.

    rows: how many; any number, row by row from the same stream. shares: {task: weight}, by default `TASK_SHARES`.
    """

    def __init__(self, rows, split="train", *, seed=0, shares=None):
        material_of(split)
        self.rows, self.split, self.seed, self.shares = rows, split, seed, dict(shares or TASK_SHARES)
        self.path = f"curriculum/{seed}/{split}"

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        rng = random.Random(f"{self.path}/{row}")
        task = rng.choices(list(self.shares), list(self.shares.values()))[0]
        sample = make_sample(task, rng, split=self.split)
        question, answer = sample.turns[0]
        first = "\n".join([*[IMAGE_PLACEHOLDER] * len(sample.pictures), question])
        turns = [part for pair in ((first, answer), *sample.turns[1:]) for part in pair]
        return Record(
            id=row,
            turns=tuple(Turn(("user", "assistant")[place % 2], text) for place, text in enumerate(turns)),
            images=sample.pictures,
            where=f"{self.path}:{row}",
            extra={"task": task},
        )

    @property
    def fingerprint(self):
        """Names the rows: their number, the seed, the split and the shares."""
        return hashlib.sha256(repr((self.path, self.rows, self.shares)).encode()).hexdigest()


def write_curriculum(folder, rows=10_000, split="train", *, seed=0):
    """Write `<split>.jsonl` and its pictures in `folder/images/`; each row also names its `task`.

    The same rows, split and seed write the same bytes; fewer rows are the beginning of more rows.

    split: "train" or "validation". Returns the path of the JSONL.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    curriculum = Curriculum(rows, split, seed=seed)
    lines = [_write_row(folder, curriculum, row) for row in range(rows)]
    path = folder / f"{split}.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return path


def _write_row(folder, curriculum, row):
    """Draw and save one row; return its line of the JSONL."""
    record = curriculum[row]
    line = {"id": row}
    names = []
    for place, picture in enumerate(record.images):
        names.append(f"images/{curriculum.split}-{row:06d}{'-2' if place else ''}.png")
        picture.save(folder / names[-1], compress_level=1)
    if len(names) == 1:
        line |= {"image": names[0], "width": record.images[0].width, "height": record.images[0].height}
    elif names:
        widths, heights = zip(*(picture.size for picture in record.images), strict=True)
        line |= {"image": names, "width_list": widths, "height_list": heights}
    turns = [{"from": {"user": "human"}.get(turn.role, "gpt"), "value": turn.text} for turn in record.turns]
    return json.dumps(line | {"conversations": turns, **record.extra})


# What becomes of a scene


def one_question(scene, rng, material):
    """A scene and one question about it."""
    drawn = scene(rng, material)
    return Sample(drawn.pictures, drawn.ask(rng.choice(drawn.questions)))


def conversation(rng, material):
    """Two or three different questions in a row about one scene; what was said before does not give the last answer."""
    drawn = rng.choice(list(SEEN))(rng, material)
    most = min(3, len(drawn.questions))
    for _ in range(20):  # a scene with one fact only repeats it
        *before, last = drawn.ask(*rng.sample(drawn.questions, rng.randint(2, most)))
        if not any(last[1] in text for turn in before for text in turn):
            break
    return Sample(drawn.pictures, (*before, last))


def from_text(rng, material):
    """A question about a scene that is told, not shown; none of more than `MOST_TOLD` things."""
    while True:
        drawn = rng.choice(list(SEEN))(rng, material)
        if drawn.in_words.count(",") < MOST_TOLD or "[[" in drawn.in_words:  # commas inside boxes part no things
            break
    ((question, answer),) = drawn.ask(rng.choice(drawn.questions))
    return Sample((), ((f"{drawn.in_words}\n{question}", answer),))


# Each task and its share of all rows.
SEEN = {
    printed.printed_lines: 9,
    printed.printed_number: 8,
    printed.printed_rows: 2,
    printed.printed_word: 6,
    printed.unknown_word: 13,
    shapes.shape_colour: 1,
    shapes.shape_name: 1,
    shapes.list_shapes: 4,
    shapes.count_shapes: 7,
    shapes.side_of_shapes: 9,
    shapes.compare_sizes: 3,
    shapes.find_box: 7,
    shapes.name_box: 2,
    printed.receipt: 9,
    printed.chart: 12,
    printed.whole_print: 8,
    pairs.two_pictures: 8,
}
TOLD = {texts.name: 1, texts.simple_sum: 2, texts.repeat_word: 4, texts.opposite: 1}
TASKS = {scene.__name__: partial(one_question, scene) for scene in (*SEEN, *TOLD)}
TASKS |= {"conversation": conversation, "from_text": from_text}
TASK_SHARES = {scene.__name__: share for scene, share in SEEN.items()} | {"conversation": 7}
TASK_SHARES |= {scene.__name__: share for scene, share in TOLD.items()} | {"from_text": 6}
