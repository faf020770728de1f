"""Tasks of shapes: what they are, how many, how large, where, and in which box."""

from .drawing import COLOURS, SHAPES, cells, draw_shape, paper, place_shape, whole
from .scene import Scene, box_text
from .vocabulary import QUESTIONS

# Picture sizes as (columns, rows) of 112 px; they decide how many tiles nano cuts.
SCENE_GRIDS = [(1, 1)] * 6 + [(2, 1)] * 3 + [(1, 2), (2, 2), (2, 2), (3, 2), (2, 3), (3, 3)]
COUNT_GRIDS = [(2, 1)] * 4 + [(1, 2)] * 4 + [(2, 2), (3, 2), (2, 3)]


def shape_colour(rng, material):
    """The colour of one shape."""
    return _one_shape(rng, QUESTIONS["colour"])


def shape_name(rng, material):
    """The name of one shape."""
    return _one_shape(rng, QUESTIONS["shape"])


def _one_shape(rng, questions):
    shape, colour = rng.choice(list(SHAPES)), rng.choice(list(COLOURS))
    picture = paper(rng, rng.choice(SCENE_GRIDS))
    draw_shape(picture, shape, colour, place_shape(whole(picture), rng))
    facts = {"a": article(colour), "shape": shape, "colour": colour}
    return Scene((picture,), questions, facts, f"There is {article(colour)} {colour} {shape}.")


def count_shapes(rng, material):
    """One to five shapes of one kind and up to two of another, each in its own cell of a grid."""
    (shape, other), count, others = rng.sample(list(SHAPES), 2), rng.randint(1, 5), rng.choice((0, 0, 1, 2))
    picture = paper(rng, rng.choice(COUNT_GRIDS))
    places = rng.sample(cells(picture, *((4, 2) if picture.width >= picture.height else (2, 4))), count + others)
    kinds = [shape] * count + [other] * others
    for kind, cell in zip(kinds, places, strict=True):
        colour = rng.choice(list(COLOURS))
        draw_shape(picture, kind, colour, place_shape(cell, rng, share=(0.6, 0.95)))
    rng.shuffle(kinds)
    facts = {"shapes": _plural(shape), "count": count, "all": count + others}
    return Scene((picture,), QUESTIONS["count"], facts, f"There are: {', '.join(kinds)}.")


def _plural(shape):
    return "crosses" if shape == "cross" else f"{shape}s"


def list_shapes(rng, material):
    """One to four shapes in rows, named in the order of reading."""
    columns, rows = rng.choice(((1, 1), (2, 1), (1, 2), (2, 2), (3, 1)))
    picture = paper(rng, rng.choice(SCENE_GRIDS))
    names = []
    for cell in cells(picture, columns, rows):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
        draw_shape(picture, shape, colour, place_shape(cell, rng, share=(0.6, 0.95)))
        names.append(f"{colour} {shape}")
    return Scene((picture,), QUESTIONS["list"], {"names": ", ".join(names)}, f"There are: {', '.join(names)}.")


def side_of_shapes(rng, material):
    """Two shapes in one row or one column of two or three places, and which is where."""
    names = two_names(rng)
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
    return Scene((picture,), QUESTIONS["side"], facts, f"The {first} is {one} the {second}.")


def compare_sizes(rng, material):
    """Two shapes, one at least half as large again as the other."""
    names = two_names(rng)
    picture = paper(rng, rng.choice(SCENE_GRIDS))
    boxes = cells(picture, *((2, 1) if picture.width >= picture.height else (1, 2)))
    shares = [rng.uniform(0.75, 0.95), rng.uniform(0.3, 0.5)]
    order = rng.sample((0, 1), 2)  # which cell gets the large one
    for name, place, share in zip(names, order, shares, strict=True):
        draw_shape(picture, name[1], name[0], place_shape(boxes[place], rng, share=(share, share)))
    large, small = map(" ".join, names)
    a, b = rng.sample((large, small), 2)
    facts = {"a": a, "b": b, "large": large, "small": small, "yes": "yes" if a == large else "no"}
    return Scene((picture,), QUESTIONS["compare"], facts, f"The {large} is big, the {small} is small.")


def find_box(rng, material):
    """The box of one of up to three shapes, in thousandths of the picture."""
    return _boxes(rng, QUESTIONS["find"])


def name_box(rng, material):
    """What a box shows, among two or three shapes."""
    return _boxes(rng, QUESTIONS["box"], fewest=2)


def _boxes(rng, questions, *, fewest=1):
    """Up to three shapes of different names, one of them boxed."""
    picture = paper(rng, rng.choice(SCENE_GRIDS))
    count = rng.randint(fewest, 3)
    places = rng.sample(cells(picture, *((2, 1) if count < 3 else (2, 2))), count)
    found = []
    for cell in places:
        name = None
        while name is None or name in [other for other, _ in found]:
            name = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
        box = draw_shape(picture, name[1], name[0], place_shape(cell, rng, share=(0.6, 0.95)))
        found.append((name, box_text(box, picture.size)))
    (colour, shape), box = rng.choice(found)
    facts = {"name": f"{colour} {shape}", "a": article(colour), "box": box}
    boxed = ", ".join(f"{' '.join(name)} at [[{where}]]" for name, where in found)
    return Scene((picture,), questions, facts, f"There are: {boxed}.")


def two_names(rng):
    """Two (colour, shape) that differ in both."""
    return list(zip(rng.sample(list(COLOURS), 2), rng.sample(list(SHAPES), 2), strict=True))


def article(colour):
    """ "a" or "an", as it stands before a colour."""
    return "an" if colour == "orange" else "a"
