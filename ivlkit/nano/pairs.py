"""Tasks of two pictures: a shape or a number in each."""

from .drawing import draw_shape, paper, place_shape, print_line, print_paper, whole
from .scene import Scene
from .shapes import article, two_names
from .vocabulary import QUESTIONS, some_number

PAIR_GRIDS = [(1, 1)] * 4 + [(2, 1), (1, 2)]  # (columns, rows) of tiles


def two_pictures(rng, material):
    """Two pictures with a shape or a number each."""
    return rng.choice((_two_shapes, _two_numbers))(rng, material)


def _two_shapes(rng, material):
    """Shapes that differ in colour and name, or (to be compared) that may be alike."""
    (colour, shape), (other_colour, other_shape) = two_names(rng)
    questions = QUESTIONS["place"] + rng.choice((QUESTIONS["which"], QUESTIONS["same"]))
    if QUESTIONS["same"][0] in questions:
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
    return Scene(tuple(pictures), QUESTIONS["numbers"], facts, in_words)
