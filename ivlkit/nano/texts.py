"""Tasks without a picture: nano's name, sums, words to repeat, opposites."""

from .scene import Scene
from .vocabulary import LISTS, QUESTIONS, new_word

OPPOSITES = [pair.split("-") for pair in LISTS["opposites"]]


def name(rng, material):
    """Who nano is."""
    return Scene((), QUESTIONS["name"], {})


def simple_sum(rng, material):
    """The sum of two numbers below 10."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return Scene((), QUESTIONS["sum"], {"a": a, "b": b, "sum": a + b})


def repeat_word(rng, material):
    """A word, said again or spelt."""
    word = new_word(rng, material)
    return Scene((), QUESTIONS["repeat"], {"word": word, "spelt": "-".join(word)})


def opposite(rng, material):
    """The opposite of an everyday word, either way round."""
    word, other = rng.sample(rng.choice(OPPOSITES), 2)
    return Scene((), QUESTIONS["opposite"], {"word": word, "opposite": other})
