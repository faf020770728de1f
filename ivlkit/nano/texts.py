"""Tasks without a picture: nano's name, sums, words to repeat, opposites."""

from .scene import Scene
from .vocabulary import listed, new_word

OPPOSITES = [
    pair.split("-")
    for pair in listed("""
hot-cold big-small up-down left-right day-night old-new fast-slow open-closed happy-sad wet-dry light-dark full-empty
high-low hard-soft long-short first-last good-bad yes-no
""")
]

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
    word = new_word(rng, material)
    return Scene((), REPEAT_QUESTIONS, {"word": word, "spelt": "-".join(word)})


def opposite(rng, material):
    """The opposite of an everyday word, either way round."""
    word, other = rng.sample(rng.choice(OPPOSITES), 2)
    return Scene((), OPPOSITE_QUESTIONS, {"word": word, "opposite": other})
