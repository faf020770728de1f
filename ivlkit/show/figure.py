"""A matplotlib figure that a notebook shows by itself, with alternative text, without pyplot and its global state."""

import io
import warnings

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from PIL import Image

from .html import embed_html, text_html, turned_html

# Okabe and Ito's palette: told apart by the colour-blind, and readable on white and on black.
BLUE, ORANGE, GREEN, PINK, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"
FONT = findfont("DejaVu Sans")  # matplotlib's own: Latin, Greek and Cyrillic, where Pillow's stops at ASCII
PIXELS_PER_INCH = 128  # as drawn; shown at 96, so that a sharp screen has something to show


class ShownFigure(Figure):
    """matplotlib's Figure; as the value of a cell it is its picture, with a line of text `below`.

    `alt` says in words what it shows.
    """

    def __init__(self, *, alt, below="", **options):
        super().__init__(**options)
        self.alt, self.below = alt, below

    def to_image(self):
        """The figure as a PIL image in RGB, on white."""
        buffer = io.BytesIO()
        with warnings.catch_warnings():  # a character that the font lacks is drawn as a box
            warnings.filterwarnings("ignore", message="Glyph")
            self.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, bbox_inches="tight", facecolor="white")
        return Image.open(buffer).convert("RGB")

    def to_html(self):
        """The figure as an embedded picture with its alternative text; dark in a dark theme, but for photos."""
        image = self.to_image()
        html = embed_html(image, alt=self.alt, width_px=round(image.width * 96 / PIXELS_PER_INCH))
        html = html if any(axes.images for axes in self.axes) else turned_html(html)
        return html + (f"<div>{text_html(self.below)}</div>" if self.below else "")

    _repr_html_ = to_html

    def __repr__(self):
        return f"Figure: {self.alt}"

    __str__ = __repr__


def bars_of(points):
    """[(score, low, high)] → how far each interval reaches below and above its score, as `errorbar` takes it."""
    scores, lows, highs = np.transpose(points)
    return [scores - lows, highs - scores]


def has_letters(text):
    """Whether the font has every letter of a text: Chinese ones it lacks, and would draw as boxes."""
    return all(map(get_font(FONT).get_char_index, map(ord, text)))


def drawn_names(texts):
    """(what matplotlib writes for each text, a line that says what numbers stand for).

    A number, "#2" for the second, stands for a text with letters that the font lacks.
    """
    labels = [plain_text(text) for text in texts]
    numbered = {place: f"#{place + 1}" for place, label in enumerate(labels) if not has_letters(label)}
    below = ", ".join(f"{number} {texts[place]:.40}" for place, number in numbered.items())
    return [numbered.get(place, label) for place, label in enumerate(labels)], below


def plain_text(text, limit=24):
    """Text for matplotlib: one printable line in which no $ starts a formula."""
    line = "".join(character if character.isprintable() else " " for character in str(text))
    return (line if len(line) <= limit else line[: limit - 1] + "…").replace("$", r"\$")
