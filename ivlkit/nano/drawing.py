"""Print, shapes and paper for nano's curriculum: small pictures drawn with Pillow and matplotlib's fonts."""

import random
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageColor, ImageDraw, ImageFont

TILE_PX = 112
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
        *((-0.3, -0.9), (0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3)),
        *((0.3, 0.9), (-0.3, 0.9), (-0.3, 0.3), (-0.9, 0.3), (-0.9, -0.3), (-0.3, -0.3)),
    ),
    "star": (
        *((0, -1), (0.26, -0.36), (0.95, -0.31), (0.42, 0.14), (0.59, 0.81)),
        *((0, 0.44), (-0.59, 0.81), (-0.42, 0.14), (-0.95, -0.31), (-0.26, -0.36)),
    ),
}
CIRCLE_RADIUS = 0.9
EDGE_PX = 3  # kept free around a line of print
PULL_PX = 4  # how far a corner of a loose glyph moves
FONTS_WITHOUT_ACCENTS = ("cmss10", "cmtt10")  # "Ä" is another sign there
GLYPH_PX = 28  # of a digit written by hand, see `draw_hand_set`


def size_px(rng, grid):
    """(width, height) of a picture of (columns, rows) tiles: exact in half of the cases, else up to 12 % smaller."""
    shrink = 1 if rng.random() < 0.5 else rng.uniform(0.88, 1)  # of both sides, or another grid would be closer
    return tuple(round(tiles * TILE_PX * shrink) for tiles in grid)


def paper(rng, grid):
    """An empty light picture for shapes."""
    return Image.new("RGB", size_px(rng, grid), rng.choice(PAPERS))


def print_paper(rng, grid):
    """An empty picture and the colour of its ink: dark on light, or (one in eight) light on dark."""
    background, ink = rng.choice(PAPERS), rng.choice(INKS)
    if rng.random() < 0.125:
        background, ink = ink, background
    return Image.new("RGB", size_px(rng, grid), background), ink


def print_line(picture, text, box, *, ink, rng, fonts, smallest=0.5):
    """Print text somewhere in box = (left, top, right, bottom) in px, from `smallest` to 1 of the size that fits."""
    width_px, height_px = box[2] - box[0] - 2 * EDGE_PX, box[3] - box[1] - 2 * EDGE_PX
    font_name = rng.choice(fonts_for(text, fonts))
    height = largest_print_px(text, font_name, width_px, height_px) * rng.uniform(smallest, 1)
    font = font_of(font_name, max(16, 2 * int(height / 2)))  # steps of 2 px: loaded fonts are used again
    left, top, right, bottom = font.getbbox(text)
    x = box[0] + EDGE_PX - left + rng.random() * (width_px - (right - left))
    y = box[1] + EDGE_PX - top + rng.random() * (height_px - (bottom - top))
    ImageDraw.Draw(picture).text((round(x), round(y)), text, fill=ink, font=font)


def largest_print_px(text, font_name, width_px, height_px):
    """The size of font at which text fills the width, or a line of any letters the height."""
    left, top, right, bottom = font_of(font_name, 100).getbbox(text, anchor="lm")
    # In every font a line of letters without accents is at most 1.05 em high; accents on capitals reach further.
    line_em = 1.05 if text.isascii() else max(1.05, 2 * max(-top, bottom) / 100)
    return min(height_px / line_em, 100 * width_px / (right - left + 2))


def print_small(picture, x, y, text, *, ink, font, anchor="lm"):
    """Print fine print at (x, y) px; anchor "lm" (left, middle) or "rm" (right, middle)."""
    ImageDraw.Draw(picture).text((x, y), text, fill=ink, font=font, anchor=anchor)


def colours_on(background):
    """Those of `COLOURS` (values) that stand out from a background (red, green, blue)."""
    red, green, blue = background
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    return [colour for colour in COLOURS.values() if abs(ImageColor.getcolor(colour, "L") - brightness) > 40]


def draw_bar(picture, box, fill):
    """Fill box = (left, top, right, bottom) in px."""
    ImageDraw.Draw(picture).rectangle(box, fill=fill)


def draw_hand_set(picture, text, *, ink, rng, fonts):
    """Set every character by itself: its own font, size, slant and turn, blurred as handwriting scans are."""
    step_px = picture.width / len(text)
    for place, character in enumerate(text):
        glyph = _loose_glyph(character, rng, fonts, round(min(step_px, picture.height) * rng.uniform(0.6, 1)))
        x = step_px * place + rng.random() * max(0, step_px - glyph.width)
        y = (picture.height - glyph.height) / 2 + rng.uniform(-0.08, 0.08) * picture.height
        picture.paste(ink, (round(x), round(y)), mask=glyph)


def _loose_glyph(character, rng, fonts, side_px):
    """A mask of one character, slanted, turned, drawn out of shape and enlarged from 28 px."""
    glyph = _glyph(character, rng.choice(fonts), rng.choice((22, 26, 30)), rng.choice((0, 0, 1)))
    shear, stretch_x, stretch_y = rng.uniform(-0.3, 0.4), rng.uniform(0.85, 1.3), rng.uniform(0.85, 1.2)
    centre = GLYPH_PX / 2
    bent = (stretch_x, shear, centre * (1 - stretch_x - shear), 0, stretch_y, centre * (1 - stretch_y))
    glyph = glyph.transform(glyph.size, Image.Transform.AFFINE, bent, Image.Resampling.BILINEAR)
    corners = (0, 0, 0, GLYPH_PX, GLYPH_PX, GLYPH_PX, GLYPH_PX, 0)  # from the upper left one, down first
    pull = random.Random(shear)  # its own stream: what else is drawn, the tokenizer's text among it, stays as it was
    pulled = [place + pull.uniform(-1, 1) * PULL_PX for place in corners]
    glyph = glyph.transform(glyph.size, Image.Transform.QUAD, pulled, Image.Resampling.BILINEAR)
    return glyph.resize((side_px, side_px), Image.Resampling.BICUBIC).rotate(
        rng.uniform(-15, 15), Image.Resampling.BILINEAR
    )


@lru_cache(maxsize=8192)
def _glyph(character, font_name, height_px, stroke_px):
    """A character in the middle of a 28-px mask."""
    glyph = Image.new("L", (GLYPH_PX, GLYPH_PX))
    middle = (GLYPH_PX / 2, GLYPH_PX / 2)
    ImageDraw.Draw(glyph).text(
        middle, character, fill=255, font=font_of(font_name, height_px), anchor="mm", stroke_width=stroke_px
    )
    return glyph


def place_shape(cell, rng, *, share=(0.5, 0.95)):
    """(x, y, radius) in px of a shape at a random place and size inside cell = (left, top, right, bottom)."""
    width_px, height_px = cell[2] - cell[0], cell[3] - cell[1]
    radius_px = min(width_px, height_px) / 2 * rng.uniform(*share)
    x = rng.uniform(cell[0] + radius_px, cell[2] - radius_px)
    y = rng.uniform(cell[1] + radius_px, cell[3] - radius_px)
    return x, y, radius_px


def draw_shape(picture, shape, colour, place):
    """Draw a shape at place = (x, y, radius) in px. Returns its bounding box (left, top, right, bottom) in px."""
    x, y, radius_px = place
    draw = ImageDraw.Draw(picture)
    if shape == "circle":
        radius_px *= CIRCLE_RADIUS
        draw.circle((x, y), radius_px, fill=COLOURS[colour])
        return x - radius_px, y - radius_px, x + radius_px, y + radius_px
    corners = [(x + radius_px * right, y + radius_px * down) for right, down in SHAPES[shape]]
    draw.polygon(corners, fill=COLOURS[colour])
    across, along = zip(*corners, strict=True)
    return min(across), min(along), max(across), max(along)


def cells(picture, columns, rows):
    """Boxes (left, top, right, bottom) in px that divide a picture, row by row."""
    width_px, height_px = picture.width // columns, picture.height // rows
    return [
        (x * width_px, y * height_px, (x + 1) * width_px, (y + 1) * height_px)
        for y in range(rows)
        for x in range(columns)
    ]


def fonts_for(text, fonts):
    """Those of `fonts` that have every letter of the text."""
    return [name for name in fonts if text.isascii() or name not in FONTS_WITHOUT_ACCENTS]


def whole(picture):
    """The box of the whole picture."""
    return 0, 0, picture.width, picture.height


@lru_cache(maxsize=1024)
def font_of(font_name, height_px):
    """A font that matplotlib brings, loaded: "DejaVuSans"."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font_name}.ttf"), height_px)
