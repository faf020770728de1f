"""What a task gets, the material of its split, and what it gives: a scene with every way to ask about it."""

from dataclasses import dataclass

from ..errors import DataError
from .vocabulary import HELD_OUT_WORDS, LISTS, WORDS

FONTS, HELD_OUT_FONTS = LISTS["fonts"], LISTS["held_out_fonts"]


@dataclass(frozen=True)
class Material:
    """What a split may show."""

    split: str  # "train" or "validation"; made-up words are in one of them, see `split_of`
    words: tuple  # common words, lower case; validation's are never read in training
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
    in_words: str = ""  # the same facts

    def ask(self, *chosen):
        """The chosen questions and answers, filled in."""
        return tuple((question.format(**self.facts), answer.format(**self.facts)) for question, answer in chosen)


def box_text(box, size):
    """A box in px as an answer has it, in thousandths of a picture of (width, height): "10, 20, 300, 400"."""
    shares = (1000 * max(0, min(edge, side)) / side for edge, side in zip(box, size * 2, strict=True))
    return ", ".join(str(round(share)) for share in shares)


def material_of(split):
    """What a split may show. Raises: DataError for another name than the two."""
    if split not in MATERIAL:
        raise DataError(f"nano/curriculum: split {split!r}, expected {' or '.join(MATERIAL)}; choose one")
    return MATERIAL[split]
