"""What `nano` is trained on first: pictures and questions drawn in code, nothing to download.

Print in many fonts, coloured shapes, receipts and charts in fine print, boxes, pairs of pictures, conversations, and a
little text. Handwriting is left out on purpose: it is what a person fine-tunes (`nano/digits`). Pictures are 99 to
672 px wide, so that rows need 1 to 13 tiles. To add a task, write one function `(rng, material) -> Scene`, enter it in
`SEEN` or `TOLD`, and give it a share in `TASK_SHARES`.

Every row is drawn from its own random stream, keyed by seed, split and row. The validation split also has words and
fonts that training never shows. How a question is asked decides how it is answered (in a word, in a sentence), so that
a reply can be compared with the truth, and a careful person can read every picture exactly: no word is written so that
its print could be another one (`ways_to_write`), and print never overlaps.

Words to be read are quoted or begin a line wherever they stand in text, so that the tokenizer spells them.
"""

import hashlib
import json
import math
import random
import re
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path

from ..data.rows.records import IMAGE_PLACEHOLDER, Record, Turn
from ..errors import DataError
from .drawing import (
    COLOURS,
    SHAPES,
    cells,
    colours_on,
    draw_bar,
    draw_hand_set,
    draw_shape,
    font_of,
    largest_print_px,
    paper,
    place_shape,
    print_line,
    print_paper,
    print_small,
    whole,
)


def _names(text):
    return tuple(text.split())


WORDS = _names("""
able about above add age air also animal answer apple arm autumn baby back bag ball bank bear bed bell bird
black blood blue board boat body book bottle box boy bread bridge brown bus cake car card cat chair city clock
cloud coat coffee cold cup dance day desk dinner doctor dog door dress drink dry dust ear earth east egg
eye face farm fast field fire fish floor flower foot forest friend fruit game garden gate girl glass gold
grass green hair hand happy hat heart heavy hill home horse house ice island job juice jump key king kitchen
knife lake lamp leaf left letter light lion long lunch map milk moon morning mountain mouse music name night
north nose ocean open orange paper park pen pencil picture pink plate quick rain red river road room rose salt
sand school sea ship shoe silver sister sky sleep snow song soup star stone street summer sun table tea train
tree voice wall water west wind winter wolf wood world yellow young zebra zero
""")
HELD_OUT_WORDS = _names("""
bike bright candle cheese corn fork fox globe goat honey jam kite lemon mirror needle owl piano queen radio
sugar tiger uncle violet wagon yard
""")
FONTS = _names("""
DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono DejaVuSansMono-Bold DejaVuSerif STIXGeneral
STIXGeneralBol cmss10 cmtt10
""")
HELD_OUT_FONTS = _names("DejaVuSans-BoldOblique DejaVuSerif-Bold DejaVuSansMono-Oblique")
ITEMS = _names("""
tea milk bread rice soup cake tuna salt kale fish leek fig oil bagel juice plum pear lime melon beer ham pasta flour
mint
""")
LABELS = _names("Mon Tue Wed Thu Fri Sat Sun")
# Made-up words are syllables: a beginning, a vowel, an end; then perhaps an ending.
BEGINNINGS = (
    _names("b c d f g h j k l m n p r s t v w y z"),
    _names("bl br ch cl cr dr fl fr gl gr pl pr qu sh sk sl sm sn sp st sw th tr tw wh"),
)
VOWELS = _names("a e i o u"), _names("ai ea ee ie oa oo ou")
ENDS = (
    _names("b d f g k l m n p r s t v w x z"),
    _names("ck ft ght ld ll lt mp nd ng nk nt rd rk rt sh sk ss st th"),
)
ENDINGS = _names("e y er le en")
MADE_UP_LENGTHS = 3, 4, 4, 5, 5, 5, 6, 6, 6
ONE_IN_EIGHT = 32  # of the 256 values of a hash's first byte
UNWANTED = re.compile(r"rn|vv|(.)\1\1|fu|cu|shi|nig|tit|ass|dic|coc|fag|sex|slu|twa|who")  # looks like "m", or is rude
GROWING = frozenset("cosuvwxz")  # letters whose capital is, in some font, little more than a larger copy
# Picture sizes as (columns, rows) of 112 px; they decide how many tiles nano cuts.
SCENE_GRIDS = [(1, 1)] * 6 + [(2, 1)] * 3 + [(1, 2), (2, 2), (2, 2), (3, 2), (2, 3), (3, 3)]
COUNT_GRIDS = [(2, 1)] * 4 + [(1, 2)] * 4 + [(2, 2), (3, 2), (2, 3)]
PAIR_GRIDS = [(1, 1)] * 4 + [(2, 1), (1, 2)]
WIDE_GRIDS = [(2, 1)] * 3 + [(3, 1)] * 3 + [(4, 1), (4, 2)]
# Receipts and charts are two tiles wide, names in the left one: (tiles high, lines a tile). Squeezed into a single tile
# their print is at most 7 px high and lost.
FINE_PRINT = [(3, 2)] * 5 + [(4, 2)]
FINE_PRINT_SIZES = (0.08, 0.085, 0.09, 0.095, 0.098)  # of the width: 15 to 21 px
MOST_TOLD = 3  # things in a scene told in words
MARGIN = 0.04  # of the width, left and right of fine print
BAR_LEFT, BAR_RIGHT = 0.42, 0.76  # of the width; a bar of the value 100
OPPOSITES = [
    ("hot", "cold"),
    ("big", "small"),
    ("up", "down"),
    ("left", "right"),
    ("day", "night"),
    ("old", "new"),
    ("fast", "slow"),
    ("open", "closed"),
    ("happy", "sad"),
    ("wet", "dry"),
    ("light", "dark"),
    ("full", "empty"),
    ("high", "low"),
    ("hard", "soft"),
    ("long", "short"),
    ("first", "last"),
    ("good", "bad"),
    ("yes", "no"),
]


@dataclass(frozen=True)
class Material:
    """What a split may show."""

    split: str  # "train" or "validation"; made-up words are in one of them, see `split_of`
    words: tuple  # common English words, lower case; validation's are never read in training
    fonts: tuple  # names of matplotlib's bundled TrueType files, without ".ttf"


MATERIAL = {
    "train": Material("train", WORDS, FONTS),
    "validation": Material("validation", HELD_OUT_WORDS, HELD_OUT_FONTS),
}


@dataclass(frozen=True)
class Scene:
    """What a task draws, and every way to ask about it."""

    pictures: tuple  # RGB
    questions: tuple  # (question, answer) each, with facts as {fields}
    facts: dict
    said: str = ""  # the same facts in words

    def ask(self, *chosen):
        """The chosen questions and answers, filled in."""
        return tuple((question.format(**self.facts), answer.format(**self.facts)) for question, answer in chosen)


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
    return TASKS[task](rng, _material(split))


class Curriculum:
    """Rows of the curriculum, drawn when asked for: `len`, `[row]` → `Record`; nothing is written.

    rows: how many; any number, row by row from the same stream. shares: {task: weight}, by default `TASK_SHARES`.
    """

    def __init__(self, rows, split="train", *, seed=0, shares=None):
        _material(split)
        self.rows, self.split, self.seed, self.shares = rows, split, seed, dict(shares or TASK_SHARES)
        self.path = f"curriculum/{seed}/{split}"

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        task, sample = self.draw(row)
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

    def draw(self, row):
        """(task, `Sample`) of a row."""
        rng = random.Random(f"{self.path}/{row}")
        task = rng.choices(list(self.shares), list(self.shares.values()))[0]
        return task, make_sample(task, rng, split=self.split)

    @property
    def fingerprint(self):
        """Names the rows: their number, the seed, the split and the shares."""
        return hashlib.sha256(repr((self.path, self.rows, self.shares)).encode()).hexdigest()


def write_curriculum(folder, rows=10_000, split="train", *, seed=0, workers=1, shares=None):
    """Write `<split>.jsonl` and its pictures in `folder/images/`; each row also names its `task`.

    The same rows, split and seed write the same bytes whatever `workers` is; fewer rows are the beginning
    of more rows.

    split: "train" or "validation". workers: processes that draw, about 1,000 rows a second each.
    Returns the path of the JSONL.
    """
    folder = Path(folder)
    write_row = partial(_write_row, folder, Curriculum(rows, split, seed=seed, shares=shares))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if workers == 1:
        lines = [write_row(row) for row in range(rows)]
    else:
        with Pool(workers) as pool:
            lines = pool.map(write_row, range(rows), chunksize=64)
    path = folder / f"{split}.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return path


# Print

NUMBER_QUESTIONS = (
    ("What number is written here?", "{number}"),
    ("Read the number.", "{number}"),
    ("Which digits do you see?", "{number}"),
    ("What is printed?", "{number}"),
    ("What does the picture say?", "{number}"),
    ("Write down the number that you see.", "{number}"),
    ("Read it to me in a sentence.", "The number is {number}."),
    ("Which number is this? Answer in a sentence.", "It says {number}."),
    ("How many digits are there?", "{count}"),
    ("Count the digits.", "{count}"),
    ("What is the first digit?", "{first}"),
    ("Which digit comes first?", "{first}"),
    ("What is the last digit?", "{last}"),
    ("Which digit comes last?", "{last}"),
)
ROW_QUESTIONS = (
    ("What number is in the top row?", "{top}"),
    ("Read the upper number.", "{top}"),
    ("What number is in the bottom row?", "{bottom}"),
    ("Read the lower number.", "{bottom}"),
    ("Read both rows.", "{top} {bottom}"),
    ("Read both numbers in a sentence.", "Above is {top}, below is {bottom}."),
)
WORD_QUESTIONS = (
    ("What word is written here?", "{word}"),
    ("Read the word.", "{word}"),
    ("Which word do you see?", "{word}"),
    ("What is printed?", "{word}"),
    ("What does the picture say?", "{word}"),
    ("Read it to me in a sentence.", 'The word is "{word}".'),
)
LINE_QUESTIONS = (
    ("Read all lines.", "{lines}"),
    ("Transcribe the text.", "{lines}"),
    ("What is written in the picture, line by line?", "{lines}"),
)


def printed_lines(rng, material):
    """Up to three short lines, each a number or a word, in half a tile or a whole one; none is cut by tiles."""
    count = rng.randint(1, 3)
    lines = [_number(rng, 4) if rng.random() < 0.5 else _word(rng) for _ in range(count)]
    lines_a_tile = rng.choice((1, 2)) if count < 3 else 2
    tiles = math.ceil(count / lines_a_tile)
    picture, ink = print_paper(rng, (2 if max(map(len, lines)) < 6 else 3, tiles))
    pitch_px, left_px = picture.height / (tiles * lines_a_tile), rng.uniform(0.03, 0.1) * picture.width
    font_name = rng.choice(material.fonts)
    room = 0.86 * picture.width, 0.9 * pitch_px
    largest_px = min(largest_print_px(line, font_name, *room) for line in lines)
    font = font_of(font_name, 2 * int(largest_px * rng.uniform(0.75, 1) / 2))
    first = rng.randint(0, tiles * lines_a_tile - count)
    for place, line in enumerate(lines, start=first):
        print_small(picture, left_px, (place + 0.5) * pitch_px, line, ink=ink, font=font)
    told = "\n".join(lines)
    return Scene((picture,), LINE_QUESTIONS, {"lines": told}, f"It says:\n{told}")


def printed_number(rng, material):
    """One to six printed digits in a strip about as many tiles wide, in line or each set by itself."""
    number = _number(rng, 6)
    picture, ink = print_paper(rng, (len(number), 1))
    if rng.random() < 0.5:
        draw_hand_set(picture, number, ink=ink, rng=rng, fonts=material.fonts)
    else:
        print_line(picture, number, whole(picture), ink=ink, rng=rng, fonts=material.fonts)
    facts = {"number": number, "count": len(number), "first": number[0], "last": number[-1]}
    return Scene((picture,), NUMBER_QUESTIONS, facts, f"It says {number}.")


def printed_rows(rng, material):
    """Two numbers, one above the other."""
    rows = _number(rng, 4), _number(rng, 4)
    picture, ink = print_paper(rng, (max(len(row) for row in rows), 2))
    half_px = picture.height // 2
    for top_px, row in zip((0, half_px), rows, strict=True):
        box = (0, top_px, picture.width, top_px + half_px)
        print_line(picture, row, box, ink=ink, rng=rng, fonts=material.fonts)
    facts = {"top": rows[0], "bottom": rows[1]}
    return Scene((picture,), ROW_QUESTIONS, facts, f"It says {rows[0]} above {rows[1]}.")


def printed_word(rng, material):
    """One of the words that nano knows, in small letters or capitals."""
    return _print_word(rng, material, _word(rng), grid=rng.choice(WIDE_GRIDS), smallest=0.5)


def unknown_word(rng, material):
    """A word that it can't know, so that letters must be read: made up, or (one in four) of the split's own words.

    Two to three letters a tile, and large: a letter is at least one and a half patches of 14 px wide on average.
    """
    word = _new_word(rng, material)
    if rng.random() < 0.2 and str.title in ways_to_write(word):
        word = word.title()
    tiles = rng.randint(math.ceil(len(word) / 3), math.ceil(len(word) / 2))
    return _print_word(rng, material, word, grid=(tiles, 1), smallest=0.75)


def _print_word(rng, material, word, *, grid, smallest):
    picture, ink = print_paper(rng, grid)
    print_line(picture, word, whole(picture), ink=ink, rng=rng, fonts=material.fonts, smallest=smallest)
    return Scene((picture,), WORD_QUESTIONS, {"word": word}, f'It says "{word}".')


# Shapes

COLOUR_QUESTIONS = (
    ("What colour is the {shape}?", "{colour}"),
    ("Name the colour.", "{colour}"),
    ("Which color do you see?", "{colour}"),
    ("What is the colour of the shape?", "{colour}"),
    ("Describe the colour.", "The {shape} is {colour}."),
)
SHAPE_QUESTIONS = (
    ("What shape is this?", "{shape}"),
    ("Name the shape.", "{shape}"),
    ("Which shape do you see?", "{shape}"),
    ("What is in the picture?", "{a} {colour} {shape}"),
    ("Describe the picture.", "The picture shows {a} {colour} {shape}."),
    ("Tell me what you see.", "I see {a} {colour} {shape}."),
)
COUNT_QUESTIONS = (
    ("How many {shapes} are there?", "{count}"),
    ("Count the {shapes}.", "{count}"),
    ("What is the number of {shapes}?", "{count}"),
    ("How many {shapes} do you see? Answer in a sentence.", "I see {count}."),
    ("How many shapes are there in all?", "{all}"),
)
SIDE_QUESTIONS = (
    ("Is the {a} {one} or {other} the {b}?", "{a_side}"),
    ("What is {a_side} the {b}?", "the {a}"),
    ("What is {one} the other?", "the {first}"),
    ("Where is the {a}, seen from the {b}?", "{a_side} it"),
    ("Where is the {a}?", "It is {a_side} the {b}."),
    ("Describe where they are.", "The {first} is {one} the {second}."),
)
COMPARE_QUESTIONS = (
    ("Which is larger, the {a} or the {b}?", "the {large}"),
    ("Which is smaller, the {a} or the {b}?", "the {small}"),
    ("What is the largest shape?", "the {large}"),
    ("Is the {a} larger than the {b}?", "{yes}"),
    ("Compare the sizes.", "The {large} is larger than the {small}."),
)
LIST_QUESTIONS = (
    ("List the shapes.", "{names}"),
    ("What do you see, from left to right and top to bottom?", "{names}"),
    ("Name all shapes in the order of reading.", "{names}"),
)
FIND_QUESTIONS = (
    ("Where is the <ref>{name}</ref>?", "<ref>{name}</ref><box>[[{box}]]</box>"),
    ("Please find the <ref>{name}</ref>.", "<ref>{name}</ref><box>[[{box}]]</box>"),
    ("Give the box of the <ref>{name}</ref>.", "<ref>{name}</ref><box>[[{box}]]</box>"),
)
BOX_QUESTIONS = (
    ("What is in <box>[[{box}]]</box>?", "{name}"),
    ("Name what <box>[[{box}]]</box> shows.", "{name}"),
    ("Describe <box>[[{box}]]</box>.", "It shows {a} {name}."),
)


def shape_colour(rng, material):
    """The colour of one shape."""
    return _one_shape(rng, COLOUR_QUESTIONS)


def shape_name(rng, material):
    """The name of one shape."""
    return _one_shape(rng, SHAPE_QUESTIONS)


def count_shapes(rng, material):
    """One to five shapes of one kind and up to two of another, each in its own cell of a grid."""
    (shape, other), count, others = rng.sample(list(SHAPES), 2), rng.randint(1, 5), rng.choice((0, 0, 1, 2))
    picture = paper(rng, rng.choice(COUNT_GRIDS))
    places = rng.sample(cells(picture, *((4, 2) if picture.width >= picture.height else (2, 4))), count + others)
    kinds = [shape] * count + [other] * others
    names = []
    for kind, cell in zip(kinds, places, strict=True):
        colour = rng.choice(list(COLOURS))
        draw_shape(picture, kind, colour, place_shape(cell, rng, share=(0.6, 0.95)))
        names.append(kind)
    rng.shuffle(names)
    facts = {"shapes": _plural(shape), "count": count, "all": count + others}
    return Scene((picture,), COUNT_QUESTIONS, facts, f"There are: {', '.join(names)}.")


def list_shapes(rng, material):
    """One to four shapes in rows, named in the order of reading."""
    columns, rows = rng.choice(((1, 1), (2, 1), (1, 2), (2, 2), (3, 1)))
    picture = paper(rng, rng.choice(SCENE_GRIDS))
    names = []
    for cell in cells(picture, columns, rows):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
        draw_shape(picture, shape, colour, place_shape(cell, rng, share=(0.6, 0.95)))
        names.append(f"{colour} {shape}")
    return Scene((picture,), LIST_QUESTIONS, {"names": ", ".join(names)}, f"There are: {', '.join(names)}.")


def side_of_shapes(rng, material):
    """Two shapes in one row or one column of two or three places, and which is where."""
    names = _two_names(rng)
    grid = rng.choice(SCENE_GRIDS)
    picture = paper(rng, grid)
    one, other = rng.choice((("left of", "right of"), ("above", "below")))
    length_px, breadth_px = picture.size if one == "left of" else picture.size[::-1]
    places = 2 if grid == (1, 1) else rng.choice((2, 3))  # small shapes need a large picture
    step_px = length_px / places
    band_px = min(step_px, breadth_px)  # thin, so that what is left of the other is not rather above it
    start_px = rng.uniform(0, breadth_px - band_px)
    for name, place in zip(names, sorted(rng.sample(range(places), 2)), strict=True):
        cell = (place * step_px, start_px, (place + 1) * step_px, start_px + band_px)
        cell = cell if one == "left of" else (cell[1], cell[0], cell[3], cell[2])
        draw_shape(picture, name[1], name[0], place_shape(cell, rng, share=(0.65, 0.95)))
    first, second = map(" ".join, names)
    a, b, a_side = rng.choice(((first, second, one), (second, first, other)))
    facts = {"a": a, "b": b, "one": one, "other": other, "a_side": a_side, "first": first, "second": second}
    return Scene((picture,), SIDE_QUESTIONS, facts, f"The {first} is {one} the {second}.")


def compare_sizes(rng, material):
    """Two shapes, one at least half as large again as the other."""
    names = _two_names(rng)
    picture = paper(rng, rng.choice(SCENE_GRIDS))
    boxes = cells(picture, *((2, 1) if picture.width >= picture.height else (1, 2)))
    shares = [rng.uniform(0.75, 0.95), rng.uniform(0.3, 0.5)]
    order = rng.sample((0, 1), 2)  # which cell gets the large one
    for name, place, share in zip(names, order, shares, strict=True):
        draw_shape(picture, name[1], name[0], place_shape(boxes[place], rng, share=(share, share)))
    large, small = map(" ".join, names)
    a, b = rng.sample((large, small), 2)
    facts = {"a": a, "b": b, "large": large, "small": small, "yes": "yes" if a == large else "no"}
    return Scene((picture,), COMPARE_QUESTIONS, facts, f"The {large} is big, the {small} is small.")


def find_box(rng, material):
    """The box of one of up to three shapes, in thousandths of the picture."""
    return _boxes(rng, FIND_QUESTIONS)


def name_box(rng, material):
    """What a box shows, among two or three shapes."""
    return _boxes(rng, BOX_QUESTIONS, fewest=2)


# Fine print

RECEIPT_QUESTIONS = (
    ("What does the {item} cost?", "{price}"),
    ("How much is the {item}?", "{price}"),
    ("Find the price of the {item}.", "{price}"),
    ("What is the total?", "{total}"),
    ("How much is to pay?", "{total}"),
    ("What is the price of the {item}? Answer in a sentence.", "The {item} costs {price}."),
)
WHOLE_QUESTIONS = (("Read everything.", "{everything}"), ("Read it from top to bottom.", "{everything}"))
CHART_QUESTIONS = (
    ("What is the value of {label}?", "{value}"),
    ("How high is {label}?", "{value}"),
    ("Read the bar of {label}.", "{value}"),
    ("Which bar is the longest?", "{longest}"),
    ("Which bar is the shortest?", "{shortest}"),
    ("Tell me the value of {label} in a sentence.", "{label} has {value}."),
)


def receipt(rng, material):
    """A receipt in fine print: what things cost, and the total under a line."""
    items = rng.sample(ITEMS, rng.randint(2, 4))
    cents = rng.sample(range(50, 1000, 5), len(items))
    rows = [*zip(items, map(_price, cents), strict=True), ("TOTAL", _price(sum(cents)))]
    picture, ink, middles = _print_rows(rng, material, rows)
    rule_y = (middles[-2] + middles[-1]) / 2
    edges = MARGIN * picture.width, (1 - MARGIN) * picture.width
    draw_bar(picture, (edges[0], rule_y, edges[1], rule_y + 1), ink)
    item, price = rng.choice(rows[:-1])
    everything = _everything(rows)
    facts = {"item": item, "price": price, "total": rows[-1][1], "everything": everything}
    return Scene((picture,), RECEIPT_QUESTIONS, facts, f"Prices: {everything}.")


def chart(rng, material):
    """A bar chart whose labels and values are fine print: label, bar, value; no two bars are nearly as long."""
    labels = rng.sample(LABELS, rng.randint(3, 4))
    values = [10 + 8 * step + rng.randint(0, 2) for step in rng.sample(range(11), len(labels))]
    rows = list(zip(labels, map(str, values), strict=True))
    picture, _, middles = _print_rows(rng, material, rows)
    colour = rng.choice(colours_on(picture.getpixel((0, 0))))
    left, half_px = BAR_LEFT * picture.width, rng.uniform(5, 10)
    for y, value in zip(middles, values, strict=True):
        right = left + (BAR_RIGHT - BAR_LEFT) * picture.width * value / 100
        draw_bar(picture, (left, y - half_px, right, y + half_px), colour)
    label, value = rng.choice(rows)
    ranked = sorted(zip(values, labels, strict=True))
    facts = {"label": label, "value": value, "longest": ranked[-1][1], "shortest": ranked[0][1]}
    everything = _everything(rows)
    return Scene((picture,), CHART_QUESTIONS, facts | {"everything": everything}, f"Values: {everything}.")


def whole_print(rng, material):
    """A receipt or a chart, read from top to bottom: dense practice for the vision tower."""
    return replace(rng.choice((receipt, chart))(rng, material), questions=WHOLE_QUESTIONS)


# Several pictures, several turns

PLACE_QUESTIONS = (
    ("What shape is in the {place} picture?", "{shape}"),
    ("What colour is in the {place} picture?", "{colour}"),
    ("Describe the {place} picture.", "The {place} picture shows {a} {colour} {shape}."),
)
WHICH_QUESTIONS = (("Which picture shows {a} {colour} {shape}, the first or the second?", "the {place}"),)
SAME_QUESTIONS = (
    ("Are both shapes of the same colour?", "{same_colour}"),
    ("Do both pictures show the same shape?", "{same_shape}"),
)
NUMBER_PAIR_QUESTIONS = (
    ("What number is in the {place} picture?", "{number}"),
    ("Read the {place} picture.", "{number}"),
    ("Read both pictures.", "{both}"),
)


def two_pictures(rng, material):
    """Two pictures with a shape or a number each."""
    return rng.choice((_two_shapes, _two_numbers))(rng, material)


# Text only

NAME_QUESTIONS = (
    ("What is your name?", "nano"),
    ("What are you called?", "nano"),
    ("Who are you?", "I am nano, a small vision-language model."),
    ("What can you do?", "I can read short texts and name simple shapes in pictures."),
)
SUM_QUESTIONS = (
    ("What is {a} + {b}?", "{sum}"),
    ("{a} + {b} =", "{sum}"),
    ("Add {a} and {b}.", "{sum}"),
    ("What is {a} plus {b}?", "{a} plus {b} is {sum}."),
)
REPEAT_QUESTIONS = (
    ('Repeat the word "{word}".', "{word}"),
    ('Say "{word}".', "{word}"),
    ("Repeat after me:\n{word}", "{word}"),
    ('Spell the word "{word}".', "{spelt}"),
)
OPPOSITE_QUESTIONS = (
    ("What is the opposite of {word}?", "{opposite}"),
    ("Opposite of {word}?", "{opposite}"),
    ("Tell me the opposite of {word}.", "The opposite of {word} is {opposite}."),
)


def name(rng, material):
    """Who nano is."""
    return Scene((), NAME_QUESTIONS, {})


def simple_sum(rng, material):
    """The sum of two numbers below 10."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return Scene((), SUM_QUESTIONS, {"a": a, "b": b, "sum": a + b})


def repeat_word(rng, material):
    """A word, said again or spelt."""
    word = _new_word(rng, material)
    return Scene((), REPEAT_QUESTIONS, {"word": word, "spelt": "-".join(word)})


def opposite(rng, material):
    """The opposite of an everyday word, either way round."""
    word, other = rng.sample(rng.choice(OPPOSITES), 2)
    return Scene((), OPPOSITE_QUESTIONS, {"word": word, "opposite": other})


# What becomes of a scene


def one_question(scene, rng, material):
    """A scene and one question about it."""
    drawn = scene(rng, material)
    return Sample(drawn.pictures, drawn.ask(rng.choice(drawn.questions)))


def conversation(rng, material):
    """Two or three different questions in a row about one scene; what was said before does not give the last answer."""
    drawn = rng.choice(SEEN)(rng, material)
    most = min(3, len(drawn.questions))
    for _ in range(20):  # a scene with one fact only repeats it
        *before, last = drawn.ask(*rng.sample(drawn.questions, rng.randint(2, most)))
        if not any(last[1] in text for turn in before for text in turn):
            break
    return Sample(drawn.pictures, (*before, last))


def from_text(rng, material):
    """A question about a scene that is told, not shown; none of more than `MOST_TOLD` things."""
    while True:
        drawn = rng.choice(SEEN)(rng, material)
        if drawn.said.count(",") < MOST_TOLD or "[[" in drawn.said:  # commas inside boxes part no things
            break
    ((question, answer),) = drawn.ask(rng.choice(drawn.questions))
    return Sample((), ((f"{drawn.said}\n{question}", answer),))


SEEN = (
    printed_lines,
    printed_number,
    printed_rows,
    printed_word,
    unknown_word,
    shape_colour,
    shape_name,
    list_shapes,
    count_shapes,
    side_of_shapes,
    compare_sizes,
    find_box,
    name_box,
    receipt,
    chart,
    whole_print,
    two_pictures,
)
TOLD = (name, simple_sum, repeat_word, opposite)
TASKS = {scene.__name__: partial(one_question, scene) for scene in (*SEEN, *TOLD)}
TASKS |= {"conversation": conversation, "from_text": from_text}
TASK_SHARES = {
    "printed_lines": 9,
    "printed_number": 8,
    "printed_rows": 2,
    "printed_word": 6,
    "unknown_word": 13,
    "shape_colour": 1,
    "shape_name": 1,
    "list_shapes": 4,
    "count_shapes": 7,
    "side_of_shapes": 9,
    "compare_sizes": 3,
    "find_box": 7,
    "name_box": 2,
    "receipt": 9,
    "chart": 12,
    "whole_print": 8,
    "two_pictures": 8,
    "conversation": 7,
    "name": 1,
    "simple_sum": 2,
    "repeat_word": 4,
    "opposite": 1,
    "from_text": 6,
}
TEXT_SHARES = {"from_text": 22, "name": 1, "simple_sum": 1, "repeat_word": 6, "opposite": 1}
SEEN_SHARES = {"printed_lines": 10, "printed_number": 6, "printed_word": 2, "unknown_word": 10, "list_shapes": 5}
SEEN_SHARES |= {"side_of_shapes": 2, "find_box": 2, "whole_print": 6}


# Drawing and writing


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
        sizes = zip(*(picture.size for picture in record.images), strict=True)
        line |= {"image": names, **dict(zip(("width_list", "height_list"), map(list, sizes), strict=True))}
    turns = [{"from": {"user": "human"}.get(turn.role, "gpt"), "value": turn.text} for turn in record.turns]
    return json.dumps(line | {"conversations": turns, **record.extra})


def _one_shape(rng, questions):
    shape, colour = rng.choice(list(SHAPES)), rng.choice(list(COLOURS))
    picture = paper(rng, rng.choice(SCENE_GRIDS))
    draw_shape(picture, shape, colour, place_shape(whole(picture), rng))
    facts = {"a": _article(colour), "shape": shape, "colour": colour}
    return Scene((picture,), questions, facts, f"There is {_article(colour)} {colour} {shape}.")


def _boxes(rng, questions, *, fewest=1):
    """Up to three shapes of different names, one of them boxed."""
    picture = paper(rng, rng.choice(SCENE_GRIDS))
    count = rng.randint(fewest, 3)
    places = rng.sample(cells(picture, *((2, 1) if count < 3 else (2, 2))), count)
    found = []
    for cell in places:
        colour, shape = _new_name(rng, [entry for entry, _ in found])
        box = draw_shape(picture, shape, colour, place_shape(cell, rng, share=(0.6, 0.95)))
        found.append(((colour, shape), _thousandths(box, picture)))
    (colour, shape), box = rng.choice(found)
    facts = {"name": f"{colour} {shape}", "a": _article(colour), "box": box}
    said = ", ".join(f"{' '.join(entry)} at [[{where}]]" for entry, where in found)
    return Scene((picture,), questions, facts, f"There are: {said}.")


def _thousandths(box, picture):
    """Pixels → "x1, y1, x2, y2" in thousandths of the picture's sides."""
    sides = (picture.width, picture.height) * 2
    return ", ".join(str(round(1000 * value / side)) for value, side in zip(box, sides, strict=True))


def _print_rows(rng, material, rows):
    """Fine print: (name, number) a line. Returns (picture, ink, the middle of each line in px)."""
    tiles, lines_a_tile = rng.choice(FINE_PRINT)
    picture, ink = print_paper(rng, (2, tiles))
    lines = tiles * lines_a_tile
    first, pitch_px = rng.randint(0, lines - len(rows)), picture.height / lines
    middles = [(first + line + 0.5) * pitch_px for line in range(len(rows))]
    font = _fine_font(rng, material, rows, width_px=picture.width)
    for y, (name, number) in zip(middles, rows, strict=True):
        print_small(picture, MARGIN * picture.width, y, name, ink=ink, font=font)
        print_small(picture, (1 - MARGIN) * picture.width, y, number, ink=ink, font=font, anchor="rm")
    return picture, ink, middles


def _fine_font(rng, material, rows, *, width_px):
    """A font in which every name and number fits its half of the picture."""
    font_name, room_px = rng.choice(material.fonts), (0.5 - MARGIN) * width_px
    fonts = [font_of(font_name, int(size * width_px)) for size in FINE_PRINT_SIZES]
    texts = [text for row in rows for text in row]
    return rng.choice([font for font in fonts if max(map(font.getlength, texts)) <= room_px])


def _everything(rows):
    return ", ".join(f"{name} {number}" for name, number in rows)


def _two_shapes(rng, material):
    """Shapes that differ in colour and name, or (to be compared) that may be alike."""
    (colour, shape), (other_colour, other_shape) = _two_names(rng)
    questions = PLACE_QUESTIONS + rng.choice((WHICH_QUESTIONS, SAME_QUESTIONS))
    if SAME_QUESTIONS[0] in questions:
        other_colour, other_shape = rng.choice((colour, other_colour)), rng.choice((shape, other_shape))
    names = (colour, shape), (other_colour, other_shape)
    pictures = tuple(paper(rng, rng.choice(PAIR_GRIDS)) for _ in range(2))
    for picture, (its_colour, its_shape) in zip(pictures, names, strict=True):
        draw_shape(picture, its_shape, its_colour, place_shape(whole(picture), rng))
    chosen = rng.randrange(2)
    facts = {
        "place": ("first", "second")[chosen],
        "shape": names[chosen][1],
        "colour": names[chosen][0],
        "a": _article(names[chosen][0]),
        "same_colour": ("no", "yes")[colour == other_colour],
        "same_shape": ("no", "yes")[shape == other_shape],
    }
    first, second = (f"{_article(name[0])} {' '.join(name)}" for name in names)
    return Scene(pictures, questions, facts, f"The first picture shows {first}. The second picture shows {second}.")


def _two_numbers(rng, material):
    numbers = [_number(rng, 3), _number(rng, 3)]
    pictures = []
    for number in numbers:
        picture, ink = print_paper(rng, (len(number), 1))
        print_line(picture, number, whole(picture), ink=ink, rng=rng, fonts=material.fonts)
        pictures.append(picture)
    chosen = rng.randrange(2)
    facts = {"place": ("first", "second")[chosen], "number": numbers[chosen], "both": ", ".join(numbers)}
    said = f"The first picture says {numbers[0]}. The second picture says {numbers[1]}."
    return Scene(tuple(pictures), NUMBER_PAIR_QUESTIONS, facts, said)


def _two_names(rng):
    """Two (colour, shape) that differ in both."""
    return list(zip(rng.sample(list(COLOURS), 2), rng.sample(list(SHAPES), 2), strict=True))


def _new_name(rng, taken):
    """A (colour, shape) not taken yet."""
    while True:
        entry = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
        if entry not in taken:
            return entry


def _article(colour):
    return "an" if colour == "orange" else "a"


def _plural(shape):
    return "crosses" if shape == "cross" else f"{shape}s"


def _price(cents):
    """350 → "3.50"."""
    return f"{cents // 100}.{cents % 100:02d}"


def _number(rng, most_digits):
    """One to `most_digits` digits as text; it may begin with 0."""
    return "".join(rng.choices("0123456789", k=rng.randint(1, most_digits)))


def _word(rng):
    """A word of both splits, in small letters, capitals or with a first capital."""
    word = rng.choice(WORDS)
    return rng.choice(ways_to_write(word))(word)


def ways_to_write(word):
    """Of `str.lower`, `str.title` and `str.upper` those whose print is the word's beyond doubt, in every font.

    "cow" has none: in capitals it looks the same, only larger. "ice" has no capitals: an I may look like an l.
    """
    sized = set(word) - GROWING
    ways = [str.lower] if sized else []
    ways += [str.title] if word[0] not in GROWING | {"i"} else []
    return ways + ([str.upper] if sized and "i" not in word else [])


def split_of(word):
    """The split that may show a word in small letters: of made-up ones a hash gives one in eight to validation."""
    if word in HELD_OUT_WORDS:
        return "validation"
    held_out = word not in WORDS and hashlib.sha256(word.encode()).digest()[0] < ONE_IN_EIGHT
    return "validation" if held_out else "train"


def _new_word(rng, material):
    """A word to be spelt, in small letters: made up, or (one in four) of the split's own words."""
    if rng.random() < 0.25:
        return rng.choice(material.words)
    while True:
        word = _made_up_word(rng)
        if split_of(word) == material.split and str.lower in ways_to_write(word) and not UNWANTED.search(word):
            return word


def _made_up_word(rng):
    """Three to six letters that sound like English, for example "blane"; at times a word that exists."""
    length = rng.choice(MADE_UP_LENGTHS)
    while True:
        word = _syllable(rng)
        while len(word) < length and rng.random() < 0.9:
            word += rng.choice(ENDINGS) if rng.random() < 0.3 else _next_syllable(rng, word)
        if len(word) == length:
            return word


def _next_syllable(rng, word):
    """One more syllable; after a vowel its first letter may be doubled, as in "rabbit"."""
    syllable = _syllable(rng)
    doubled = word[-1] in "aeiou" and syllable[0] in "bdfglmnprt" and rng.random() < 0.2
    return syllable[0] * doubled + syllable


def _syllable(rng):
    beginning = rng.choice(BEGINNINGS[rng.random() < 0.3]) if rng.random() < 0.85 else ""
    end = rng.choice(ENDS[rng.random() < 0.3]) if not beginning or rng.random() < 0.5 else ""
    return beginning + rng.choice(VOWELS[rng.random() < 0.25]) + end


def _material(split):
    if split not in MATERIAL:
        raise DataError(f"nano/curriculum: split {split!r}, expected {' or '.join(MATERIAL)}; choose one")
    return MATERIAL[split]
