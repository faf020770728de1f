"""Real handwritten digits, and strips of them to fine-tune on.

`nano` learns to read print from drawn pictures (`nano/curriculum`). Handwriting is what a person then teaches
it, so that fine-tuning has a real effect to show. The digits are 5,000 of MNIST (see `digits/LICENSE.md`) in
one picture, `digits/digits.png`: 100 digits of 28 px a row and five rows a class, so digit
`i` shows `i // 500`. Of the 500 of a class the first 400 are for training, the next 50 for validation, the
last 50 for testing. No two digits are equal, and no digit is in two splits (a writer may be: the source does
not say who wrote what).
"""

import csv
import io
import json
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.files import write_if_changed
from ..errors import DataError
from .scene import box_text
from .vocabulary import STRIP_QUESTIONS as QUESTIONS

ATLAS = Path(__file__).parent / "digits" / "digits.png"
GLYPH_PX = 28
COLUMNS = 100
DIGITS_PER_CLASS = 500
# Places within a class.
SPLITS = {"train": range(0, 400), "validation": range(400, 450), "test": range(450, 500)}

STRIP_HEIGHT_PX = 112  # one tile of nano; a strip is as many tiles wide as it has digits
GAP_WEIGHTS = (0.25, 1.75)  # shares of the free width, so uneven that digits often straddle a tile's border

PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
TASK_SHARES = {"read": 7, "count": 1, "first": 1, "last": 1}  # rows of each, out of ten; the others come when named


def digit_ids(split):
    """Numbers of a split's digits in the atlas, int64 [N]; digit 1234 shows 1234 // 500 = 2."""
    _require(split, SPLITS, "split")
    return np.array([label * DIGITS_PER_CLASS + place for label in range(10) for place in SPLITS[split]])


def write_digit_strips(folder, split="train", *, rows=400, digits=(1, 6), seed=0, tasks=tuple(TASK_SHARES)):
    """Write `<split>.jsonl` and its pictures: handwritten numbers and questions about them.

    A strip is 112 px high and exactly 112 px wide per digit. The same arguments write the same bytes, and
    fewer rows are the beginning of more rows. All digits of the split are used before one is used again.
    Files that are there already are not touched: a run may be reading them.

    folder: made if missing; pictures go to `folder/images/<split>-00000.png`.
    digits: fewest and most digits a strip; (1, 1) gives single digits.
    tasks: any of "read" ("407"), "count" ("3"), "first" ("4"), "last" ("7"), of which seven in ten read; "find"
    (the box of a digit's ink, in thousandths of the strip) and "json" ({"number": "407", "digits": 3, "sum": 11}).
    Returns the path of the JSONL. A row has `task` and `digit_ids` (see `digit_ids`) beside the usual fields.
    """
    folder = Path(folder)
    if not 1 <= digits[0] <= digits[1]:
        raise DataError(f"write_digit_strips: digits={digits}, expected (fewest, most) >= 1; try (1, 6)")
    if "find" in tasks and digits[1] > len(PLACES):
        raise DataError(f'write_digit_strips: digits={digits} beside "find"; expected at most {len(PLACES)} digits')
    if not tasks:
        raise DataError(f"write_digit_strips: no tasks, expected some of {', '.join(QUESTIONS)}; name one")
    shares = [TASK_SHARES.get(_require(task, QUESTIONS, "task"), 1) for task in tasks]
    deck = _deal(digit_ids(split), random.Random(f"digits/{seed}/{split}"))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.jsonl"
    lines = []
    for row in range(rows):
        rng = random.Random(f"strips/{seed}/{split}/{row}")
        task = rng.choices(tasks, shares)[0]
        ids = [next(deck) for _ in range(rng.randint(*digits))]
        lines.append(json.dumps(_write_row(folder, f"{split}-{row:05d}", row, task, ids, rng)) + "\n")
    write_if_changed(path, "".join(lines).encode())
    return path


def write_digit_table(folder, *, rows=300, digits=(1, 2)):
    """Write `labels.csv` and its pictures as a spreadsheet has them: columns file, number, digits.

    Three lines can't be used, as in most tables: the first has no number, the second's picture is not there, that of
    the third ends in the middle. The same arguments write the same bytes.

    Returns the path of the table.
    """
    if rows < 3:
        raise DataError(f"write_digit_table: rows={rows}, expected 3 or more; its first three are broken")
    folder = Path(folder)
    strips = write_digit_strips(folder, rows=rows, digits=digits, tasks=("read",)).read_text(encoding="utf-8")
    written = [json.loads(line) for line in strips.splitlines()]
    lines = [[row["image"], row["conversations"][1]["value"], row["num_digits"]] for row in written]
    lines[0][1], lines[1][0] = "", "images/IMG_0042.png"
    cut = folder / lines[2][0]
    cut.write_bytes(cut.read_bytes()[:300])
    path = folder / "labels.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["file", "number", "digits"], *lines])
    return path


def draw_strip(ids, rng):
    """Draw a handwritten number in dark ink on light paper: RGB, 112 px high, 112 px wide per digit.

    ids: numbers of its digits in the atlas, from left to right.
    rng: a `random.Random`, for paper, ink, size, tilt and place.
    Returns (strip, the box (left, top, right, bottom) of each digit's ink in px).
    """
    inks = [_ink_of_digit(number, rng) for number in ids]
    mask = Image.new("L", (STRIP_HEIGHT_PX * len(inks), STRIP_HEIGHT_PX))
    free_px = mask.width - sum(ink.width for ink in inks)
    weights = [rng.uniform(*GAP_WEIGHTS) for _ in range(len(inks) + 1)]  # one more gap than there are digits
    left_px, boxes = 0.0, []
    for ink, weight in zip(inks, weights, strict=False):
        left_px += free_px * weight / sum(weights)
        top_px = (STRIP_HEIGHT_PX - ink.height) // 2 + rng.randint(-6, 6)
        mask.paste(ink, (round(left_px), top_px))  # ink is under 112 px wide, so nothing overlaps
        boxes.append((round(left_px), top_px, round(left_px) + ink.width, top_px + ink.height))
        left_px += ink.width
    strip = Image.new("RGB", mask.size, tuple(rng.randint(226, 255) for _ in range(3)))
    strip.paste((rng.randint(0, 70), rng.randint(0, 70), rng.randint(0, 120)), mask=mask)
    return strip, boxes


def _write_row(folder, name, row, task, ids, rng):
    """Draw and save one strip; return its JSONL row."""
    strip, boxes = draw_strip(ids, rng)
    picture = io.BytesIO()
    strip.save(picture, "png")
    write_if_changed(folder / "images" / f"{name}.png", picture.getvalue())
    question, answer = rng.choice(QUESTIONS[task])
    facts = _facts([int(i) // DIGITS_PER_CLASS for i in ids], boxes, strip, rng)
    turns = [("human", f"<image>\n{question.format(**facts)}"), ("gpt", answer.format(**facts))]
    return {
        "id": row,
        "image": f"images/{name}.png",
        "width": strip.width,
        "height": strip.height,
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "task": task,
        "num_digits": len(ids),
        "digit_ids": [int(i) for i in ids],
    }


def _facts(labels, boxes, strip, rng):
    """What questions and answers are filled in with; `place` and `box` are those of a drawn digit."""
    number, chosen = "".join(map(str, labels)), rng.randrange(len(labels))
    facts = {"number": number, "count": len(labels), "first": number[0], "last": number[-1], "sum": sum(labels)}
    return facts | {"place": PLACES[min(chosen, len(PLACES) - 1)], "box": box_text(boxes[chosen], strip.size)}


def _ink_of_digit(number, rng):
    """A picture of its ink, about four times as large as in the atlas, a little turned, cut to the ink."""
    size_px = round(STRIP_HEIGHT_PX * rng.uniform(0.85, 1.05))
    ink = Image.fromarray(_atlas()[number]).resize((size_px, size_px), Image.Resampling.BICUBIC)
    ink = ink.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    return ink.crop(ink.getbbox())


def _deal(ids, rng):
    """Endlessly deal shuffled ids: every one comes once before any comes again."""
    ids = [int(i) for i in ids]
    while True:
        rng.shuffle(ids)
        yield from ids


@lru_cache(maxsize=1)
def _atlas():
    """uint8 [5000, 28, 28], read-only."""
    with Image.open(ATLAS) as picture:
        pixels = np.asarray(picture)  # [1400, 2800]
    grid = pixels.reshape(-1, GLYPH_PX, COLUMNS, GLYPH_PX).transpose(0, 2, 1, 3)
    digits = grid.reshape(-1, GLYPH_PX, GLYPH_PX)
    digits.setflags(write=False)
    return digits


def _require(name, known, what):
    if name not in known:
        raise DataError(f"nano/digits: {what} {name!r}, expected one of {', '.join(known)}; choose one")
    return name
