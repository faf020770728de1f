"""Answers in several spellings: they differ only in case, space, a last full stop or their Unicode form."""

import unicodedata
from collections import Counter

LONGEST = 100  # characters of an answer; a longer one is a text, no label


def spelling_key(answer):
    """What all spellings of an answer have in common: "no dog" of "No  dog."; a long text has none but its own."""
    if len(answer) > LONGEST:
        return answer
    text = answer if answer.isascii() else unicodedata.normalize("NFC", answer)
    return " ".join(text.casefold().split()).rstrip(".。 ") or answer


def counts_text(counts):
    """What is found of the spellings of one answer, (text, rows) each: "'Yes' 20, 'yes' 3, 'YES' 1: …"."""
    said = [repr(answer) for answer, _ in counts]
    looks_equal = len({unicodedata.normalize("NFC", one) for one in said}) < len(said)
    said = [ascii(answer) for answer, _ in counts] if looks_equal else said
    shown = ", ".join(f"{answer} {rows:,}" for answer, (_, rows) in zip(said, counts, strict=True))
    return f"{shown}: answers that differ only in case, space, full stop or Unicode form"


def common_spellings(answers):
    """{answer: its most common spelling}, of those that have another; none where two are equally common."""
    forms, common = {}, {}
    for answer, rows in Counter(answers).items():
        forms.setdefault(spelling_key(answer), []).append((rows, answer))
    for found in forms.values():
        (most, best), *others = sorted(found, reverse=True)
        if others and most > others[0][0]:
            common |= dict.fromkeys((answer for _, answer in others), best)
    return common
