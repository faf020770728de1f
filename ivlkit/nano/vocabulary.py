"""The words that nano knows, words that it can't know, how they may be written, and the questions of `tables.yaml`.

No word is written so that its print could be another one (`ways_to_write`). Validation has words of its own, real and
made up (`split_of`).
"""

import hashlib
import re
import unicodedata
from pathlib import Path

import yaml


def _pairs(table):
    """{scene: ((question, answer), …)}, facts as {fields}."""
    return {scene: tuple(asked.items()) for scene, asked in table.items()}


_TABLES = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
LISTS = {name: tuple(words.split()) for name, words in _TABLES["lists"].items()}
QUESTIONS, STRIP_QUESTIONS = _pairs(_TABLES["questions"]), _pairs(_TABLES["strips"])
WORDS, HELD_OUT_WORDS = LISTS["words"], LISTS["held_out_words"]
# Of German, French, Italian, Spanish, Portuguese, the Nordic languages, Croatian, Czech, Slovak, Polish, Hungarian and
# Turkish. Romanian's ș is not among them: in small print it is Turkish's ş.
SMALL_ACCENTED = "äöüßàâçéèêëîïôùûœìòáíóúñãõåøæčšžćđěřůťďňýąęłńśźżőűğşı"
ACCENTED = SMALL_ACCENTED + "".join(letter.upper() for letter in SMALL_ACCENTED if letter not in "ßı") + "İ"
UNDIVIDED = dict(zip("ßœøæđłıŒØÆĐŁ", "sooadliOOADL", strict=True))  # Unicode gives these no base and accent
BEGINNINGS = LISTS["beginnings"], LISTS["long_beginnings"]
VOWELS, ENDS = (LISTS["vowels"], LISTS["long_vowels"]), (LISTS["ends"], LISTS["long_ends"])
MADE_UP_LENGTHS = 3, 4, 4, 5, 5, 5, 6, 6, 6
ONE_IN_EIGHT = 32  # of the 256 values of a hash's first byte
UNWANTED = re.compile(r"rn|vv|(.)\1\1|fu|cu|shi|nig|tit|ass|dic|coc|fag|sex|slu|twa|who")  # looks like "m", or is rude
TURKISH = frozenset("ğş")
ACCENTED_SHARE = 0.3  # of made-up words
GROWING = frozenset("cosuvwxz")  # letters whose capital is, in some font, little more than a larger copy


def some_number(rng, most_digits):
    """One to `most_digits` digits as text; it may begin with 0."""
    return "".join(rng.choices("0123456789", k=rng.randint(1, most_digits)))


def known_word(rng):
    """A word of both splits, in small letters, capitals or with a first capital."""
    word = rng.choice(WORDS)
    return rng.choice(ways_to_write(word))(word)


def ways_to_write(word):
    """Of `str.lower`, `str.title`, `str.upper` (`turkish_upper`) those whose print can't be another word's in any font.

    "cow" has none: in capitals it looks the same, only larger. "ice" has no capitals: an I may look like an l.
    Turkish's "değil" has them, with a dot. "weiß" has none: WEISS may be "weiss".
    """
    plain = without_accents(word)
    sized = set(plain) - GROWING
    ways = [str.lower] if sized else []
    ways += [str.title] if plain[0] not in GROWING | {"i"} else []
    if not sized or set(word) & set("ıß"):
        return ways
    if "i" not in word:
        return [*ways, str.upper]
    return [*ways, turkish_upper] if set(word) & TURKISH else ways


def turkish_upper(word):
    """In Turkish's capitals, which keep the dot: "değil" → "DEĞİL"."""
    return word.replace("i", "İ").upper()


def without_accents(word):
    """The word in the 26 letters: "Łódź" → "Lodz"; "ß" → "s"."""
    return "".join(UNDIVIDED.get(letter) or unicodedata.normalize("NFD", letter)[0] for letter in word)


def split_of(word):
    """The split that may show a word in small letters: of made-up ones a hash gives one in eight to validation."""
    if word in HELD_OUT_WORDS:
        return "validation"
    held_out = word not in WORDS and hashlib.sha256(word.encode()).digest()[0] < ONE_IN_EIGHT
    return "validation" if held_out else "train"


def new_word(rng, material):
    """A word to be spelt, in small letters: made up, some with an accent, or (one in four) of the split's own words."""
    if rng.random() < 0.25:
        return rng.choice(material.words)
    is_accented = rng.random() < ACCENTED_SHARE
    while True:
        word = _made_up_word(rng)
        if is_accented:  # in place of any letter, so that it can't be guessed
            place = rng.randrange(len(word))
            word = word[:place] + rng.choice(SMALL_ACCENTED) + word[place + 1 :]
        is_clear = str.lower in ways_to_write(word) and not UNWANTED.search(without_accents(word))
        if split_of(word) == material.split and is_clear:
            return word


def _made_up_word(rng):
    """Three to six letters that sound like English, for example "blane"; at times a word that exists."""
    length = rng.choice(MADE_UP_LENGTHS)
    while True:
        word = _syllable(rng)
        while len(word) < length and rng.random() < 0.9:
            if rng.random() < 0.3:
                word += rng.choice(LISTS["endings"])
                continue
            syllable = _syllable(rng)  # after a vowel its first letter may be doubled, as in "rabbit"
            doubled = word[-1] in "aeiou" and syllable[0] in "bdfglmnprt" and rng.random() < 0.2
            word += syllable[0] * doubled + syllable
        if len(word) == length:
            return word


def _syllable(rng):
    beginning = rng.choice(BEGINNINGS[rng.random() < 0.3]) if rng.random() < 0.85 else ""
    end = rng.choice(ENDS[rng.random() < 0.3]) if not beginning or rng.random() < 0.5 else ""
    return beginning + rng.choice(VOWELS[rng.random() < 0.25]) + end
