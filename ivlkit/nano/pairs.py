"""Tasks of two pictures: a shape or a number in each."""

from .drawing import draw_shape, paper, place_shape, print_line, print_paper, whole
from .scene import Scene
from .shapes import article, two_names
from .vocabulary import some_number

PAIR_GRIDS = [(1, 1)] * 4 + [(2, 1), (1, 2)]  # (columns, rows) of tiles

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


def _two_shapes(rng, material):
    """Shapes that differ in colour and name, or (to be compared) that may be alike."""
    (colour, shape), (other_colour, other_shape) = two_names(rng)
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
        "a": article(names[chosen][0]),
        "same_colour": ("no", "yes")[colour == other_colour],
        "same_shape": ("no", "yes")[shape == other_shape],
    }
    first, second = (f"{article(name[0])} {' '.join(name)}" for name in names)
    return Scene(pictures, questions, facts, f"The first picture shows {first}. The second picture shows {second}.")


def _two_numbers(rng, material):
    numbers = [some_number(rng, 3), some_number(rng, 3)]
    pictures = []
    for number in numbers:
        picture, ink = print_paper(rng, (len(number), 1))
        print_line(picture, number, whole(picture), ink=ink, rng=rng, fonts=material.fonts)
        pictures.append(picture)
    chosen = rng.randrange(2)
    facts = {"place": ("first", "second")[chosen], "number": numbers[chosen], "both": ", ".join(numbers)}
    in_words = f"The first picture says {numbers[0]}. The second picture says {numbers[1]}."
    return Scene(tuple(pictures), NUMBER_PAIR_QUESTIONS, facts, in_words)
