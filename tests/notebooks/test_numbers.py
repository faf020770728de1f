"""What a notebook's texts say in numbers is what its outputs show."""

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
WORDS = {"one": 1, "two": 2, "four": 4, "five": 5, "six": 6, "eight": 8, "Forty": 40}
HOLDS = {  # what a text claims → whether a number that was seen bears it out, and one that would not
    "is": (lambda told, seen: seen == told, lambda told: told + 1),
    "about": (lambda told, seen: abs(seen - told) <= 0.05 * told, lambda told: 1.1 * told),
    "above": (lambda told, seen: seen > told, lambda told: told),
    "below": (lambda told, seen: seen < told, lambda told: told),
}
# (notebook, a text with its numbers, the outputs with the same numbers, what the text claims of each)
TOLD = [
    ("00", r"\*\*: (\d+) columns and (\d+) rows", r"found \((\d+), (\d+)\)", "is is"),
    ("00", r"and (\d+) tiles with the thumbnail", r"(\d+) tiles with the thumbnail", "is"),
    ("02", r"\*\*: (\d+) columns and (\d+) rows, because 3 : 2", r"found \((\d+), (\d+)\)", "is is"),
    ("02", r"costs as much as the phone's photo, ([\d,]+) tokens", r"icon .* ([\d,]+) tokens", "is"),
    ("02", r"costs as much as the phone's photo, ([\d,]+) tokens", r"phone photo .* ([\d,]+) tokens", "is"),
    ("02", r"500 × 500 stays (\w+) tile", r"500 x 500 .* (\d+) tiles", "is"),
    ("02", r"is at (\d+) % with up to four", r"prices \d+%, \d+%, (\d+)%", "is"),
    ("02", r"costs: (\S+) tokens become (\S+),", r"6: (\S+) tokens for 40 receipts\n.* (\S+) tokens for 40", "is is"),
    ("02", r"becomes four, (\w+) with the thumbnail", r"640 x 640 .* (\d+) tiles", "is"),
    ("03", r"of every token falls from above (\d+) to below (\d+)", r"every token from (\S+) to (\S+);", "above below"),
    ("04", r"(\S+) patches and one more.* become (\d+) tokens", r"of 448 px: (\S+) patches, (\d+) tokens", "is is"),
    ("04", r"the same with (\d+) and (\d+)\.", r"of 112 px: (\d+) patches, (\d+) tokens", "is is"),
    ("06", r"\*\*: about (\d+) GiB, and", r"26b-lora: needs (\S+) GiB", "about"),
    ("06", r"takes the compiled 2B from over (\d+) GiB", r"2b lora compiled  (\S+) GiB", "above"),
    ("06", r"2B from over \d+ GiB to under (\d+);", r"2b lora compiled recomputed (\S+) GiB", "below"),
    ("08", r"the blind model scores about (\d+) %", r"trained blind\nReport\(exact_match (\S+)%", "about"),
    ("09", r"(\w+) rows can't tell the two rates", r"compared on (\d+) rows(?s:.)*can't tell \S+ and \S+ apart", "is"),
    ("09", r"three epochs are (\w+) optimiser steps", r"20 labels: (\d+) steps", "is"),
    ("11", r"The tenth is (\d+) rows of", r"(\d+) of \d+ rows are old", "is"),
    ("12", r"\*\*: (\w+) steps of eight rows", r"48 rows in (\d+) steps", "is"),
    ("12", r"Step (\d+) is the first that differs", r"found step (\d+): the first loss that differs", "is"),
    ("13", r"By DDP each of them holds (\d+) GiB", r"predicted: DDP (\S+) GiB", "about"),
    ("13", r"which is too much for (\d+) GiB", r"predicted: DDP (\S+) GiB", "above"),
]


def texts(name):
    """(all that the notebook says, all that its outputs show as text)."""
    (path,) = FOLDER.glob(f"{name}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    seen = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown"), "\n".join(seen)


def numbers(pattern, text):
    """What the groups of the pattern's first match hold, as numbers."""
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in it"
    return [WORDS.get(each) or float(each.replace(",", "").rstrip("%")) for each in found.groups()]


def test_there_are_enough_of_them():
    assert sum(len(claims.split()) for _, _, _, claims in TOLD) >= 20 and len({name for name, *_ in TOLD}) >= 9


@pytest.mark.parametrize(("name", "told", "seen", "claims"), TOLD)
def test_a_number_in_a_text_is_that_of_an_output(name, told, seen, claims):
    prose, outputs = texts(name)
    for said, shown, claim in zip(numbers(told, prose), numbers(seen, outputs), claims.split(), strict=True):
        assert HOLDS[claim][0](said, shown), f"{name} says {claim} {said:g}, its output {shown:g}"


@pytest.mark.parametrize(("name", "told", "seen", "claims"), TOLD)
def test_another_output_would_be_found(name, told, seen, claims):
    prose, outputs = texts(name)
    found = re.search(seen, outputs)
    for group, (said, claim) in enumerate(zip(numbers(told, prose), claims.split(), strict=True), 1):
        holds, other = HOLDS[claim]
        changed = f"{outputs[: found.start(group)]}{other(said):g}{outputs[found.end(group) :]}"
        assert not holds(said, numbers(seen, changed)[group - 1])
