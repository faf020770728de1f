"""How metrics make texts comparable: one function for each published rule.

Before all of them stands Unicode NFC: "é" is one character whether it was written as one or as "e" and an accent.
"""

import functools
import math
import re
import string
import unicodedata

_NOT_WORDS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you",
    "'ll": "how it somebody someone something they what who why you",
    "'s": "he how somebody someone there that what when where who why",
    "'re": "there they what why you",
    "": "ma'am o'clock 'ow's'at 'twas y'all y'all'll y'all'd've",
}
_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED.split())}
_ARTICLES = {"a", "an", "the"}
_VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ASCII = {0xFF01 + place: 0x21 + place for place in range(94)} | {0x2212: "-"}  # full-width "１，５％", the minus sign
_GROUP = "[ \u00a0\u2009\u202f'’]"  # between thousands, beside point and comma
_DIGITS = rf"\d{{1,3}}(?:{_GROUP}\d{{3}})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*|[.,]\d+"
_WRITTEN = re.compile(rf"(?<![\w.,])[-+]?(?:{_DIGITS})(?:[eE][-+]?\d+)?")  # no part of a word: "CO2", "m2"
_PERIOD = re.compile(r"\.(?!\d)")  # 1.5 keeps its point


def _misspellings():
    """{"dont": "don't", "couldnt've": "couldn't've", …}: every contraction with one apostrophe left out."""
    found = {"somebody'd": "somebodyd"}  # the published table has this pair the wrong way round
    for ending, stems in _NOT_WORDS.items():
        for word in (stem + ending for stem in stems.split()):
            places = [place for place, character in enumerate(word) if character == "'"]
            found |= {word[:place] + word[place + 1 :]: word for place in places}
    return found


_CONTRACTIONS = _misspellings()


def compose(value):
    """A text, or each of a list of texts, in Unicode NFC."""
    if isinstance(value, str):
        return value if unicodedata.is_normalized("NFC", value) else unicodedata.normalize("NFC", value)
    return tuple(map(compose, value))


def composed(metric):
    """The metric of replies and truths in Unicode NFC."""

    @functools.wraps(metric)
    def in_nfc(*texts, **named):
        return metric(*map(compose, texts), **{name: compose(text) for name, text in named.items()})

    return in_nfc


def accepted(truth):
    """The accepted answers of a truth, in NFC: ("a",) for "a"."""
    return compose((truth,) if isinstance(truth, str) else truth)


def best_accepted(metric):
    """The metric's best score over the accepted answers."""

    @functools.wraps(metric)
    def best(reply, truth):
        return max(float(metric(compose(reply), answer)) for answer in accepted(truth))

    return best


def collapse(text):
    """Whitespace collapsed, in NFC: " two\\n words" → "two words"."""
    return " ".join(compose(text).split())


def vqa_text(text):
    """The answer processing of the VQA and TextVQA challenges: "The two cats." → "2 cats".

    Lower case, punctuation out (or a space where it joins two words), number words as digits, articles out,
    apostrophes back into contractions.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    cleaned = text
    for mark in _VQA_PUNCTUATION:
        stands_alone = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if stands_alone else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def squad_words(text):
    """The words of SQuAD's F1: lower case, punctuation out, articles out. "The cat's hat." → ["cats", "hat"]."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in kept.split() if word not in _ARTICLES]


def caption_words(text):
    """The words of a caption without punctuation: "A man's T-shirt, don't." → a, man, 's, t-shirt, do, n't.

    Close to the Penn Treebank rules that published caption scores use (a Java program); not equal on every text.
    """
    text = re.sub(r"n't\b", " n't", text.lower().replace("’", "'"))
    text = re.sub(r"(?<=\w)('(?:s|re|ve|ll|d|m))\b", r" \1", text)
    return re.findall(r"n't|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-.,]\w+)*", text)


def loose(text):
    """Without case, spaces and the punctuation at the end: "New York." → "newyork", "Yes !" → "yes"."""
    return "".join(text.casefold().split()).rstrip(".,;:!?。，；：！？、")


def number_in(text):
    """(the one number of a text, the words beside it): "1 234,50 €" → (1234.5, {"€"}); None for no number or several.

    Where point and comma both stand, the last is the decimal mark; a mark that stands several times parts thousands.
    A mark that stands once is the decimal mark, "1,5" is 1.5, except for a comma before three digits: "1,234" is
    1234 as in English, though some write 1.234 so; "1.234" is 1.234, though some write 1234 so. Spaces and
    apostrophes part thousands too. Digits may be of any script.
    """
    text = text.translate(_ASCII)
    found = _WRITTEN.findall(text)
    value = _value(found[0]) if len(found) == 1 else None
    words = (word.strip(".,;:!?()").casefold() for word in _WRITTEN.sub(" ", text).split())
    return None if value is None else (value, {word for word in words if word})


def _value(written):
    """The number that digits and marks write, or None: "1.234.567,8" → 1234567.8, "31.12.2020" → None."""
    written = re.sub(_GROUP, "", written)
    marks = [mark for mark in written if mark in ".,"]
    decimal = marks[-1] if len(set(marks)) == 2 and marks.count(marks[-1]) == 1 else None
    if len(marks) == 1 and not re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", written):
        decimal = marks[0]
    whole, _, rest = written.partition(decimal) if decimal else (written, "", "")
    if re.search("[.,]", whole) and not re.fullmatch(r"[-+]?\d{1,3}(?:([.,])\d{2,3})*(?:[.,]\d{3})", whole):
        return None
    value = float(re.sub("[.,]", "", whole) + (f".{rest}" if rest else ""))
    return value if math.isfinite(value) else None
