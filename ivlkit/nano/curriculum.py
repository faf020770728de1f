"""What `nano` is trained on first: pictures and questions drawn in code, nothing to download.

Print in many fonts, coloured shapes, and a little text. Handwriting is left out on purpose: it is what a
person fine-tunes (`nano/digits`). Pictures are 112 to 672 px wide, so that rows need 1 to 13 tiles. To add a
task, write one function `(rng, material) -> (picture or None, question, answer)` and enter it in `TASKS`.

Every row is drawn from its own random stream, keyed by seed, split and row. The validation split also has
words and fonts that training never shows.
"""

import json
import random
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import Pool
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from ivlkit.errors import DataError


def _names(text):
    return tuple(text.split())


TILE_PX = 112
WORDS = _names("""
able about above add age air also animal answer apple arm autumn baby back bag ball bank bear bed bell bird
black blood blue board boat body book bottle box boy bread bridge brown bus cake car card cat chair city clock
cloud coat coffee cold cow cup dance day desk dinner doctor dog door dress drink dry dust ear earth east egg
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
DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono DejaVuSansMono-Bold DejaVuSerif
DejaVuSerif-Italic STIXGeneral STIXGeneralBol STIXGeneralItalic cmr10 cmss10 cmtt10
""")
HELD_OUT_FONTS = _names("DejaVuSans-BoldOblique DejaVuSerif-Bold STIXGeneralBolIta cmb10")
PAPERS = ["white", "#fff8e1", "#e8f4fd", "#f1f8e9", "#fdecea", "#eeeeee", "#d7ccc8"]
INKS = ["black", "#1a237e", "#b71c1c", "#1b5e20", "#4a148c", "#37474f", "#bf360c"]
COLOURS = {
    "red": "#e53935",
    "green": "#2e9d3a",
    "blue": "#1e5fd8",
    "yellow": "#fdd20a",
    "orange": "#fb8c00",
    "purple": "#8e24aa",
    "black": "#1c1c1c",
    "pink": "#f48fb1",
    "brown": "#6d4c33",
}
# Corners on a unit circle as (right, down); a circle has none.
SHAPES = {
    "circle": (),
    "square": ((-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)),
    "triangle": ((0, -0.9), (0.95, 0.75), (-0.95, 0.75)),
    "diamond": ((0, -1), (0.7, 0), (0, 1), (-0.7, 0)),
    "cross": (
        (-0.3, -0.9),
        (0.3, -0.9),
        (0.3, -0.3),
        (0.9, -0.3),
        (0.9, 0.3),
        (0.3, 0.3),
        (0.3, 0.9),
        (-0.3, 0.9),
        (-0.3, 0.3),
        (-0.9, 0.3),
        (-0.9, -0.3),
        (-0.3, -0.3),
    ),
    "star": (
        (0, -1),
        (0.26, -0.36),
        (0.95, -0.31),
        (0.42, 0.14),
        (0.59, 0.81),
        (0, 0.44),
        (-0.59, 0.81),
        (-0.42, 0.14),
        (-0.95, -0.31),
        (-0.26, -0.36),
    ),
}
# Picture sizes as (columns, rows) of 112 px, then up to 12 % smaller; they decide how many tiles nano cuts.
SCENE_GRIDS = [(1, 1)] * 6 + [(2, 1)] * 3 + [(1, 2), (2, 2), (2, 2), (3, 2), (2, 3), (3, 3), (4, 3), (3, 4)]
WIDE_GRIDS = [(2, 1)] * 3 + [(3, 1), (3, 1), (4, 1), (3, 2), (4, 2)]
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

    words: tuple  # common English words, lower case
    fonts: tuple  # names of matplotlib's bundled TrueType files, without ".ttf"


MATERIAL = {
    "train": Material(WORDS, FONTS),
    "validation": Material(HELD_OUT_WORDS, HELD_OUT_FONTS),
}


def make_sample(task, rng, *, split="train"):
    """One question and its answer, with or without a picture.

    task: a key of `TASKS`. rng: a `random.Random`; the same state gives the same sample.
    split: "train", or "validation" for words and fonts that training never shows.
    Returns (RGB picture or None, question without "<image>", answer): (picture, "Read the number.", "407").
    """
    if task not in TASKS:
        raise DataError(f"make_sample: task {task!r}, expected one of {', '.join(TASKS)}; choose one")
    return TASKS[task](rng, _material(split))


def write_curriculum(folder, rows=10_000, split="train", *, seed=0, workers=1):
    """Write `<split>.jsonl` and its pictures in `folder/images/`; each row also names its `task`.

    The same rows, split and seed write the same bytes whatever `workers` is; fewer rows are the beginning
    of more rows.

    split: "train" or "validation". workers: processes that draw, about 1,000 rows a second each.
    Returns the path of the JSONL.
    """
    folder = Path(folder)
    _material(split)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_row = partial(_write_row, folder, split, seed)
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
    "What number is written here?",
    "Read the number.",
    "Which digits do you see?",
    "What is printed?",
    "What does the picture say?",
)
WORD_QUESTIONS = (
    "What word is written here?",
    "Read the word.",
    "Which word do you see?",
    "What is printed?",
    "What does the picture say?",
)
ROW_QUESTIONS = (
    ("What number is in the top row?", "{top}"),
    ("What number is in the bottom row?", "{bottom}"),
    ("Read both rows.", "{top} {bottom}"),
)


def printed_number(rng, material):
    """One to six printed digits in a strip about as many tiles wide."""
    number = _number(rng, 6)
    picture, ink = _print_paper(rng, (len(number), 1))
    _print_line(picture, number, _whole(picture), ink, rng, material)
    return picture, rng.choice(NUMBER_QUESTIONS), number


def printed_rows(rng, material):
    """Two numbers, one above the other."""
    rows = _number(rng, 4), _number(rng, 4)
    picture, ink = _print_paper(rng, (max(len(row) for row in rows), 2))
    half_px = picture.height // 2
    for top_px, row in zip((0, half_px), rows, strict=True):
        _print_line(picture, row, (0, top_px, picture.width, top_px + half_px), ink, rng, material)
    question, answer = rng.choice(ROW_QUESTIONS)
    return picture, question, answer.format(top=rows[0], bottom=rows[1])


def printed_word(rng, material):
    """A word, in small letters or capitals; one in four is made up, so that letters must be read."""
    word = _made_up_word(rng) if rng.random() < 0.25 else rng.choice(material.words)
    word = rng.choice((str.lower, str.lower, str.upper, str.title))(word)
    picture, ink = _print_paper(rng, rng.choice(WIDE_GRIDS))
    _print_line(picture, word, _whole(picture), ink, rng, material)
    return picture, rng.choice(WORD_QUESTIONS), word


# Shapes

COLOUR_QUESTIONS = (
    ("What colour is the {shape}?", "{colour}"),
    ("Name the colour.", "{colour}"),
    ("Which color do you see?", "{colour}"),
    ("Describe the colour.", "The {shape} is {colour}."),
)
SHAPE_QUESTIONS = (
    ("What shape is this?", "{shape}"),
    ("Name the shape.", "{shape}"),
    ("What is in the picture?", "{a} {colour} {shape}"),
    ("Describe the picture.", "The picture shows {a} {colour} {shape}."),
)
COUNT_QUESTIONS = (
    ("How many {shapes} are there?", "{count}"),
    ("Count the {shapes}.", "{count}"),
    ("How many shapes do you see?", "{count}"),
)
SIDE_QUESTIONS = (
    ("Is the {a} left or right of the {b}?", "{a_side}"),
    ("What is on the left?", "{left}"),
    ("What is on the right?", "{right}"),
    ("What is {a_side} of the {b}?", "{a}"),
    ("Where is the {a}?", "The {a} is on the {a_side}."),
)


def shape_colour(rng, material):
    """The colour of one shape."""
    return _one_shape(rng, COLOUR_QUESTIONS)


def shape_name(rng, material):
    """The name of one shape."""
    return _one_shape(rng, SHAPE_QUESTIONS)


def count_shapes(rng, material):
    """One to six shapes of one kind, each in its own cell of a 3 × 2 (or 2 × 3) grid."""
    count, shape = rng.randint(1, 6), rng.choice(list(SHAPES))
    colours = rng.choices(list(COLOURS), k=count)
    picture = _paper(rng, rng.choice(SCENE_GRIDS))
    cells = rng.sample(_cells(picture, *((3, 2) if picture.width >= picture.height else (2, 3))), count)
    for cell, colour in zip(cells, colours, strict=True):
        _draw_shape(picture, shape, colour, cell, rng)
    question, answer = rng.choice(COUNT_QUESTIONS)
    shapes = "crosses" if shape == "cross" else f"{shape}s"
    return picture, question.format(shapes=shapes), answer.format(count=count)


def left_or_right(rng, material):
    """Two different shapes side by side, and which is on which side."""
    shapes, colours = rng.sample(list(SHAPES), 2), rng.sample(list(COLOURS), 2)
    picture = _paper(rng, rng.choice(SCENE_GRIDS + WIDE_GRIDS))
    for shape, colour, cell in zip(shapes, colours, _cells(picture, 2, 1), strict=True):
        _draw_shape(picture, shape, colour, cell, rng)
    left, right = (f"{colour} {shape}" for colour, shape in zip(colours, shapes, strict=True))
    a, b, a_side = rng.choice(((left, right, "left"), (right, left, "right")))
    question, answer = rng.choice(SIDE_QUESTIONS)
    names = {"a": a, "b": b, "a_side": a_side, "left": left, "right": right}
    return picture, question.format(**names), answer.format(**names)


# Text only

NAME_QUESTIONS = (
    ("What is your name?", "nano"),
    ("Who are you?", "I am nano, a small vision-language model."),
    ("What can you do?", "I can read short texts and name simple shapes in pictures."),
)
SUM_QUESTIONS = (
    ("What is {a} + {b}?", "{sum}"),
    ("{a} + {b} =", "{sum}"),
    ("Add {a} and {b}.", "{sum}"),
    ("What is {a} plus {b}?", "{a} plus {b} is {sum}."),
)
REPEAT_QUESTIONS = ("Repeat the word {word}.", "Say {word}.", "Repeat after me: {word}")
OPPOSITE_QUESTIONS = (
    ("What is the opposite of {word}?", "{opposite}"),
    ("Opposite of {word}?", "{opposite}"),
    ("Tell me the opposite of {word}.", "The opposite of {word} is {opposite}."),
)


def name(rng, material):
    """Who nano is."""
    return None, *rng.choice(NAME_QUESTIONS)


def simple_sum(rng, material):
    """The sum of two numbers, below 10."""
    a = rng.randint(0, 9)
    b = rng.randint(0, 9 - a)
    question, answer = rng.choice(SUM_QUESTIONS)
    return None, question.format(a=a, b=b), answer.format(a=a, b=b, sum=a + b)


def repeat_word(rng, material):
    """A word, said again."""
    word = rng.choice(material.words)
    return None, rng.choice(REPEAT_QUESTIONS).format(word=word), word


def opposite(rng, material):
    """The opposite of an everyday word, either way round."""
    word, other = rng.sample(rng.choice(OPPOSITES), 2)
    question, answer = rng.choice(OPPOSITE_QUESTIONS)
    return None, question.format(word=word), answer.format(word=word, opposite=other)


TASKS = {
    function.__name__: function
    for function in (
        printed_number,
        printed_rows,
        printed_word,
        shape_colour,
        shape_name,
        count_shapes,
        left_or_right,
        name,
        simple_sum,
        repeat_word,
        opposite,
    )
}
TASK_SHARES = {
    "printed_number": 8,
    "printed_rows": 3,
    "printed_word": 6,
    "shape_colour": 2,
    "shape_name": 2,
    "count_shapes": 3,
    "left_or_right": 3,
    "name": 1,
    "simple_sum": 1,
    "repeat_word": 1,
    "opposite": 1,
}


# Drawing and writing


def _write_row(folder, split, seed, row):
    """Draw and save row `row`; return its line of the JSONL."""
    rng = random.Random(f"curriculum/{seed}/{split}/{row}")
    task = rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()))[0]
    picture, question, answer = make_sample(task, rng, split=split)
    line = {"id": row}
    if picture is not None:
        image = f"images/{split}-{row:06d}.png"
        picture.save(folder / image, compress_level=1)
        line |= {"image": image, "width": picture.width, "height": picture.height}
        question = f"<image>\n{question}"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps(line | {"conversations": turns, "task": task})


def _one_shape(rng, questions):
    shape, colour = rng.choice(list(SHAPES)), rng.choice(list(COLOURS))
    picture = _paper(rng, rng.choice(SCENE_GRIDS))
    _draw_shape(picture, shape, colour, _whole(picture), rng)
    question, answer = rng.choice(questions)
    a = "an" if colour == "orange" else "a"
    return picture, question.format(shape=shape), answer.format(a=a, shape=shape, colour=colour)


def _paper(rng, grid):
    """An empty light picture for shapes."""
    return Image.new("RGB", _size_px(rng, grid), rng.choice(PAPERS))


def _print_paper(rng, grid):
    """An empty picture for print and the colour of its ink: dark on light, or (one in four) light on dark."""
    paper, ink = rng.choice(PAPERS), rng.choice(INKS)
    if rng.random() < 0.25:
        paper, ink = ink, paper
    return Image.new("RGB", _size_px(rng, grid), paper), ink


def _size_px(rng, grid):
    """(width, height) of (columns, rows) tiles, each side up to 12 % smaller but at least 112 px."""
    return tuple(max(TILE_PX, round(tiles * TILE_PX * rng.uniform(0.88, 1))) for tiles in grid)


def _print_line(picture, text, box, ink, rng, material):
    """Print text somewhere in box = (left, top, right, bottom) in px, as large as fits or down to half of
    that."""
    width_px, height_px = box[2] - box[0], box[3] - box[1]
    font_name = rng.choice(material.fonts)
    # Measured over WORDS in capitals: in every font a character is at most 0.94 em wide and 1.02 em high.
    largest_px = min(height_px / 1.05, width_px / (0.95 * len(text)))
    size_px = largest_px * rng.uniform(0.5, 1)
    font = _font(font_name, max(16, 4 * int(size_px / 4)))  # steps of 4 px: loaded fonts are used again
    left, top, right, bottom = font.getbbox(text)
    x = box[0] - left + rng.random() * (width_px - (right - left))
    y = box[1] - top + rng.random() * (height_px - (bottom - top))
    ImageDraw.Draw(picture).text((round(x), round(y)), text, fill=ink, font=font)


def _draw_shape(picture, shape, colour, cell, rng):
    """Draw a shape at a random place and size in cell = (left, top, right, bottom) in px."""
    width_px, height_px = cell[2] - cell[0], cell[3] - cell[1]
    radius_px = min(width_px, height_px) / 2 * rng.uniform(0.5, 0.95)
    x = rng.uniform(cell[0] + radius_px, cell[2] - radius_px)
    y = rng.uniform(cell[1] + radius_px, cell[3] - radius_px)
    draw = ImageDraw.Draw(picture)
    if shape == "circle":
        draw.circle((x, y), radius_px * 0.9, fill=COLOURS[colour])
    else:
        corners = [(x + radius_px * right, y + radius_px * down) for right, down in SHAPES[shape]]
        draw.polygon(corners, fill=COLOURS[colour])


def _cells(picture, columns, rows):
    """Boxes (left, top, right, bottom) in px that divide a picture, row by row."""
    width_px, height_px = picture.width // columns, picture.height // rows
    return [
        (x * width_px, y * height_px, (x + 1) * width_px, (y + 1) * height_px)
        for y in range(rows)
        for x in range(columns)
    ]


def _whole(picture):
    return 0, 0, picture.width, picture.height


def _number(rng, most_digits):
    """One to `most_digits` digits as text; it may begin with 0."""
    return "".join(rng.choices("0123456789", k=rng.randint(1, most_digits)))


def _made_up_word(rng):
    """Two or three syllables that are no word, for example "tolamu"."""
    return "".join(rng.choice("bcdfghjklmnprstvwyz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))


def _material(split):
    if split not in MATERIAL:
        raise DataError(f"nano/curriculum: split {split!r}, expected {' or '.join(MATERIAL)}; choose one")
    return MATERIAL[split]


def font_path(font_name):
    """Where matplotlib keeps one of its fonts, for example "DejaVuSans"."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font_name}.ttf"


@lru_cache(maxsize=1024)
def _font(font_name, size_px):
    return ImageFont.truetype(font_path(font_name), size_px)
