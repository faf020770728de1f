"""Scores of replies: one function a metric.

METRICS are functions of (reply, truth) that give 0 to 1. A truth is a text, or several accepted answers (a row's field
`answers`: VQA's ten, DocVQA's two or three). The best of them decides; only `vqa_accuracy` counts them.
CORPUS_METRICS are functions of (replies, truths) of a whole report that give a dict: `rows`, the score of each row, and
numbers that no mean of rows gives, such as precision or CIDEr.
"""

import functools
import hashlib
import importlib
import inspect
import json
import math
import re
from collections import Counter

import numpy as np

from ..errors import DataError
from .boxes import ap, ap50, grounding, iou, iou_at_50
from .confidence import ScoredReply
from .normalise import (
    accepted,
    best_accepted,
    caption_words,
    collapse,
    compose,
    composed,
    loose,
    number_in,
    squad_words,
    vqa_text,
)

ANLS_THRESHOLD = 0.5
RELATIVE_TOLERANCE = 0.05  # ChartQA
_SPACELESS = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Thai, Lao, Japanese, Chinese, Korean
_WHOLE_NUMBER = re.compile(r"(?<![\d.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\.?\d)")  # 4.5 and 1,000; no part of 31.12.2020
_LETTER_FIRST = re.compile(r"\W*([A-Za-z])(?:\s*[.:)\],、，。]|\s[-–—]\s|\W*(?:$|\n))")
_LETTER_NAMED = re.compile(r"(?i:answer|option|choice|答案|选项)\W*(?i:is|are|是|为)?\W*([A-Z])\b")
_ANOTHER_LETTER = re.compile(  # behind a letter: ", B", ") and (C"; no "A, a cat" or "A, I think"
    r"[.:)\]]*\s*(?:[,、，;/&(]|(?i:and|or)\b|和|或)\W*(?:[B-HJ-Z]\b|[A-Za-z]\s*(?:[.:)\],、，。;/&]|$|(?i:and|or)\b))"
)
_LETTER_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


# words and texts ------------------------------------------------------------------------------------------------------


@best_accepted
def exact_match(reply, truth):
    """1 if both are equal after collapsing whitespace, else 0. Upper and lower case differ."""
    return collapse(reply) == collapse(truth)


@best_accepted
def lenient_match(reply, truth):
    """As `exact_match`, but case, spaces and the punctuation at the end don't count: "new york." for "New York" → 1."""
    return loose(reply) == loose(truth)


@best_accepted
def contains(reply, truth):
    """1 if the reply holds the truth as whole words, in any case: "It is Paris." holds "paris", "407" doesn't hold "4".

    Nor do "4.5" and "4,000". In scripts without spaces any place counts.
    """
    if not truth.strip():
        return not reply.strip()
    words = re.escape(collapse(truth).casefold())
    letter = rf"[^\W{_SPACELESS}]"
    before = rf"(?<!{letter})" if re.match(letter, truth.strip()) else ""
    after = rf"(?!{letter})" if re.search(rf"{letter}$", truth.strip()) else ""
    text = collapse(reply).casefold()
    inside = {place for number in _WHOLE_NUMBER.finditer(text) for place in range(number.start() + 1, number.end())}
    return any(inside.isdisjoint(match.span()) for match in re.finditer(before + words + after, text))


@best_accepted
def f1(reply, truth):
    """F1 of shared words, by SQuAD's rules: "a red cat" for "the cat" → 2 · 1 / (2 + 1) = 0.667.

    Words are what stands between spaces; for scripts without them use `character_accuracy`.
    """
    found, expected = squad_words(reply), squad_words(truth)
    if not found or not expected:
        return found == expected
    return 2 * (Counter(found) & Counter(expected)).total() / (len(found) + len(expected))


@composed
def vqa_accuracy(reply, truth):
    """VQA's accuracy over ten people's answers, after its text normalisation: 3 of 10 agree → 0.9, 4 → 1.

    Each of the ten is left out in turn; the reply scores min(1, agreeing / 3) against the other nine; the mean of that.
    With one accepted answer: 1 if both are equal after normalisation.

    Raises: DataError for any other number of answers.
    """
    answers = [vqa_text(answer) for answer in accepted(truth)]
    if len(answers) not in (1, 10):
        raise DataError(
            f"vqa_accuracy: {len(answers)} answers; expected the ten of the benchmark, or one; "
            "for a list of accepted answers choose exact_match or anls"
        )
    agreeing = answers.count(vqa_text(reply))
    if len(answers) == 1:
        return float(agreeing)
    without_one = agreeing * min(1, (agreeing - 1) / 3) + (10 - agreeing) * min(1, agreeing / 3)
    return without_one / 10


@best_accepted
def anls(reply, truth):
    """1 - edit distance / longer length, 0 if that is under 0.5; case and whitespace don't count.

    As the DocVQA and ST-VQA evaluations compute it, but both lengths are of the collapsed text.
    """
    found, expected = collapse(reply).lower(), collapse(truth).lower()
    longer = max(len(found), len(expected))
    similarity = 1 - edit_distance(found, expected) / longer if longer else 1.0
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


@best_accepted
def relaxed_accuracy(reply, truth):
    """ChartQA's: numbers within 5 % of the truth, texts equal in any case. "96" and "104" for "100" → 1; "106" → 0.

    "5%" is 0.05. The error is relative to the truth; the released script divides by the reply.
    """
    found, expected = _as_number(reply), _as_number(truth)
    if found is None or expected is None:
        return collapse(reply).lower() == collapse(truth).lower()
    return abs(found - expected) <= RELATIVE_TOLERANCE * abs(expected)


@best_accepted
def number(reply, truth):
    """1 if both hold the same number, however it is written: "1 234,50 €" for "€1,234.5", "It is ５." for "5" → 1.

    Read by `number_in`, which says what "1,234" is. A unit counts where both texts have one: "5 g" for "5 kg" → 0, "5"
    → 1; units are not converted. A reply with several numbers is wrong. A truth without one is compared as
    `lenient_match` does.
    """
    found, expected = number_in(reply), number_in(truth)
    if found is None or expected is None:
        return expected is None and loose(reply) == loose(truth)
    return found[0] == expected[0] and (not found[1] or expected[1] <= found[1])


@best_accepted
def character_accuracy(reply, truth):
    """1 - character error rate, at least 0: "cat" for "cart" → 1 - 1 / 4 = 0.75."""
    return max(0.0, 1 - character_error_rate(reply, truth))


@composed
def character_error_rate(reply, truth):
    """Edits that turn the reply into the truth, by the truth's characters; above 1 for a reply that is far too long."""
    if not truth:
        return float(bool(reply))
    return edit_distance(reply, truth) / len(truth)


@best_accepted
def rouge_l(reply, truth):
    """ROUGE-L's F-measure, by Google's rouge-score with stemming. Its words are of a-z and digits: no other script."""
    scorer = _of_package("rouge_score.rouge_scorer", "rouge_l", "rouge-score").RougeScorer(["rougeL"], use_stemmer=True)
    return scorer.score(truth, reply)["rougeL"].fmeasure


@composed
def bleu(reply, truth):
    """BLEU of one sentence, smoothed, by sacrebleu; published scores are `corpus_bleu`."""
    return _of_package("sacrebleu", "bleu").sentence_bleu(reply, list(accepted(truth))).score / 100


# choices --------------------------------------------------------------------------------------------------------------


@best_accepted
def multiple_choice(reply, truth):
    """1 if the reply names the truth's letter ("B", "(B)", "B. blue", "The answer is B"), or is the truth in any case.

    A reply that names no letter, or several, is wrong; nothing is guessed. "A cat" names none: there "A" is a word.
    """
    if collapse(reply).casefold().rstrip(".") == collapse(truth).casefold().rstrip("."):
        return True
    letter = choice_letter(reply)
    return letter is not None and letter == choice_letter(truth)


def choice_letter(text):
    """The option that a text names, "B" for "(b) blue", or None."""
    first = _LETTER_FIRST.match(text)
    found = [first] if first else [*_LETTER_NAMED.finditer(text)] or [*_LETTER_IN_BRACKETS.finditer(text)]
    named = {letter[1].upper() for letter in found}
    if len(named) != 1 or any(_ANOTHER_LETTER.match(text, letter.end(1)) for letter in found):
        return None
    return named.pop()


@best_accepted
def yes_no(reply, truth):
    """1 if both say yes or both say no; read as `says_no` does."""
    return says_no(reply) == says_no(truth)


def says_no(text):
    """POPE's rule: "no" or "not" among the words of the first sentence is a no, anything else a yes.

    Words are read in any case and without punctuation: "No!" is a no, which the published script takes for a yes.
    """
    return not {"no", "not"}.isdisjoint(_first_words(text))


def _first_words(text):
    return re.findall(r"[a-z']+", text.strip().partition(".")[0].lower())


# JSON -----------------------------------------------------------------------------------------------------------------


@best_accepted
def json_fields(reply, truth):
    """Share of fields that are right, out of all that the truth or the reply has; 0 for a reply without JSON.

    {"total": 4, "items": ["a"]} has the fields total and items[0]. Texts are compared with whitespace collapsed,
    numbers as numbers; an invented field counts against the reply. Text around the reply's JSON is passed over.

    Raises: DataError if the truth is no JSON.
    """
    expected = _first_json(truth)
    if expected is None:
        raise DataError(f"json_fields: the truth {truth[:80]!r} holds no JSON object or list; choose another metric")
    found = _first_json(reply)
    if found is None:
        return 0.0
    expected, found = dict(_leaves(expected)), dict(_leaves(found))
    return sum(found.get(path) == value for path, value in expected.items()) / len(expected | found)


def _first_json(text):
    """The first JSON object or list in a text, or None."""
    for start in (place for place, character in enumerate(text) if character in "{["):
        try:
            return json.JSONDecoder().raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
    return None


def _leaves(value, path=""):
    """(path, comparable value) of every field; an empty object or list is one field itself."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    elif isinstance(value, bool) or not isinstance(value, (int, float, str)):
        yield compose(path), ("other", repr(value))  # true is not 1
    else:
        yield compose(path), ("text", collapse(value)) if isinstance(value, str) else ("number", value)


# whole reports --------------------------------------------------------------------------------------------------------


@composed
def pope(replies, truths):
    """POPE: accuracy, and precision, recall and F1 of "yes"; yes_rate, and unclear, the share that says neither.

    POPE's own score is the mean of F1 over its three sets: evaluate each, or take `Report.select(set=…)`.
    """
    says_yes = np.array([not says_no(reply) for reply in replies])
    is_yes = np.array([not says_no(accepted(truth)[0]) for truth in truths])
    right = (says_yes & is_yes).sum()
    unclear = [{"yes", "no", "not"}.isdisjoint(_first_words(reply)) for reply in replies]
    return {
        "rows": (says_yes == is_yes).astype(float).tolist(),
        "accuracy": float((says_yes == is_yes).mean()),
        "precision": _ratio(right, says_yes.sum()),
        "recall": _ratio(right, is_yes.sum()),
        "f1": _ratio(2 * right, says_yes.sum() + is_yes.sum()),
        "yes_rate": float(says_yes.mean()),
        "unclear": float(np.mean(unclear)),
    }


def _ratio(part, whole):
    return float(part / whole) if whole else 0.0


@composed
def cider(replies, truths):
    """CIDEr-D, 0 to 10: n-grams of 1 to 4 words, weighted by how rare they are among the pictures' captions.

    Rows that share no words with others weigh most, so a score belongs to its test set; one row alone has 0. Published
    scores are 100 times this. Source: Vedantam et al., CVPR 2015, and the COCO caption evaluation.
    """
    scores = cider_of_words(
        [caption_words(reply) for reply in replies],
        [[caption_words(answer) for answer in accepted(truth)] for truth in truths],
    )
    return {"rows": scores, "cider": float(np.mean(scores))}


def cider_of_words(replies, references):
    """CIDEr-D of each reply: replies are lists of words, references lists of such lists."""
    counted = [[_ngrams(words) for words in answers] for answers in references]
    documents = Counter(gram for answers in counted for gram in set().union(*answers))
    rarity = functools.partial(_weigh, documents=documents, log_rows=math.log(len(references)))
    scores = []
    for reply, answers in zip(replies, counted, strict=True):
        found = rarity(_ngrams(reply))
        scores.append(10 * float(np.mean([_cider_similarity(found, rarity(answer)) for answer in answers])))
    return scores


def _ngrams(words, longest=4):
    return Counter(tuple(words[at : at + n]) for n in range(1, longest + 1) for at in range(len(words) - n + 1))


def _weigh(counts, *, documents, log_rows):
    """({n-gram: weight} for each length, its norms, number of bigrams: the length that the published code compares)."""
    vectors = [{} for _ in range(4)]
    for gram, count in counts.items():
        vectors[len(gram) - 1][gram] = count * (log_rows - math.log(max(1, documents[gram])))
    norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors]
    return vectors, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def _cider_similarity(found, expected, sigma=6.0):
    """Mean cosine over the four lengths, clipped to the reference's counts, less for a different length."""
    penalty = math.exp(-((found[2] - expected[2]) ** 2) / (2 * sigma**2))
    cosines = []
    for reply, answer, reply_norm, answer_norm in zip(found[0], expected[0], found[1], expected[1], strict=True):
        shared = sum(min(weight, answer.get(gram, 0.0)) * answer.get(gram, 0.0) for gram, weight in reply.items())
        cosines.append(shared / (reply_norm * answer_norm) if reply_norm and answer_norm else 0.0)
    return penalty * sum(cosines) / len(cosines)


@composed
def corpus_bleu(replies, truths):
    """BLEU-4 of the whole report by sacrebleu, 0 to 1; its signature says with which settings."""
    answers = [accepted(truth) for truth in truths]
    most = max(map(len, answers))
    references = [[each[number] if number < len(each) else None for each in answers] for number in range(most)]
    scorer = _of_package("sacrebleu", "bleu").BLEU()
    score = scorer.corpus_score(list(replies), references).score / 100
    rows = [bleu(reply, truth) for reply, truth in zip(replies, truths, strict=True)]
    return {"rows": rows, "bleu": score, "signature": str(scorer.get_signature())}


@composed
def corpus_character_error_rate(replies, truths):
    """Edits of all rows by characters of all truths, of the nearest accepted answer of each row."""
    nearest = [
        min(accepted(truth), key=functools.partial(character_error_rate, reply))
        for reply, truth in zip(replies, truths, strict=True)
    ]
    edits = sum(edit_distance(reply, truth) for reply, truth in zip(replies, nearest, strict=True))
    rows = [character_accuracy(reply, truth) for reply, truth in zip(replies, nearest, strict=True)]
    return {"rows": rows, "character_error_rate": _ratio(edits, sum(map(len, nearest)))}


# parts ----------------------------------------------------------------------------------------------------------------


def edit_distance(first, second):
    """Fewest insertions, deletions and substitutions of characters: 1 for "cat" and "cart"."""
    letters, places = _code_points(second), np.arange(len(second) + 1)
    row = places
    for number, letter in enumerate(_code_points(first), start=1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (letters != letter))
        row = np.minimum.accumulate(np.concatenate([[number], changed]) - places) + places  # insertions, left to right
    return int(row[-1])


def _code_points(text):
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _as_number(text):
    """A float, "5%" as 0.05; None for other texts. "1,000" is a text, as in the published rule."""
    text = text.strip()
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _of_package(module, metric, package=None):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise DataError(f"{metric} needs the package {package}: pip install {package}") from error


def _by_name(*functions):
    return {function.__name__: function for function in functions}


SOURCE = "metric_source"  # in a report's details: of a function of one's own
METRICS = _by_name(
    *(exact_match, lenient_match, contains, f1, vqa_accuracy, anls, relaxed_accuracy, number, character_accuracy),
    *(rouge_l, bleu, multiple_choice, yes_no, iou, iou_at_50, json_fields),
)
CORPUS_METRICS = _by_name(pope, cider, corpus_bleu, corpus_character_error_rate, grounding, ap50, ap)
# In these, always giving the most frequent answer may score well.
EXACT_METRICS = {"pope": yes_no} | _by_name(
    *(exact_match, lenient_match, contains, vqa_accuracy, relaxed_accuracy, number, multiple_choice, yes_no)
)


def metric_name(metric):
    """What a report calls a metric; your own f1 "mine.f1". Raises: DataError for a name that is none."""
    known = METRICS | CORPUS_METRICS
    if callable(metric):
        name = getattr(metric, "__name__", "score")
        try:
            inspect.signature(metric).bind("reply", "truth")
        except TypeError as error:  # not once every reply is there
            raise DataError(f"metric {name}: {error}; expected a function of (reply, truth)") from error
        except ValueError:  # of a function in C, whose parameters are not known
            pass
        return name if known.get(name, metric) is metric else f"{metric.__module__}.{name}"
    if not isinstance(metric, str) or metric not in known:
        names = ", ".join(known)
        raise DataError(f"metric {metric!r}; expected one of {names}, or a function of (reply, truth)")
    return metric


def metric_source(metric):
    """16 hex digits of the source of a function of one's own, by which an edited one is seen; None where none is known:
    of the kit's metrics, of a lambda, whose lines hold other things, and of what no Python file has.
    """
    if not callable(metric) or metric_name(metric) in {*METRICS, *CORPUS_METRICS, "<lambda>"}:
        return None
    try:
        return hashlib.sha256(inspect.getsource(metric).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return None


def metric_of(report, metric=None):
    """What scores a report's rows again: its metric's name, or the function of one's own that it was made with.

    Raises: DataError where the function is not given, is another, or was edited since.
    """
    if metric is None and not report.has_own_metric:
        return report.metric
    if metric is None:
        found = f"a report whose metric, {report.metric}, is a function of your own"
        raise DataError(found, "the function beside it", "pass it too: metric=…")
    if metric_name(metric) != report.metric:
        found = f"the metric {metric_name(metric)} for a report that has {report.metric}"
        raise DataError(found, "the same metric", "pass what it was evaluated with")
    if (own := metric_source(metric)) and own != report.details.get(SOURCE, own):
        found = f"the metric {report.metric}, edited since the report was made"
        raise DataError(found, "the source as it was", "evaluate the rows again; to=… of evaluate keeps the replies")
    return metric


def score_replies(metric, replies, truths):
    """(the score of each row, numbers of the whole) by a metric's name or a function. Raises: DataError."""
    name = metric_name(metric)
    if name in ("yes_no", "pope"):
        _check_yes_or_no(name, truths)
    if not callable(metric) and metric in CORPUS_METRICS:
        found = CORPUS_METRICS[metric](replies, truths)
        return found.pop("rows"), found
    of_row = metric if callable(metric) else METRICS[metric]
    scores = [of_row(*pair) for pair in zip(replies, truths, strict=True)]
    try:
        numbers = list(map(float, scores))
    except (TypeError, ValueError):  # None, a dict, "yes"
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"metric {name}: gave {scores!r:.60}; expected finite numbers from 0 to 1")
    return numbers, {}


def _check_yes_or_no(name, truths):
    """A truth such as "red" or "否" would be a yes, as most replies are then: all of them right."""
    for truth in truths:
        if all({"yes", "no", "not"}.isdisjoint(_first_words(answer)) for answer in accepted(truth)):
            raise DataError(f"{name}: the truth {truth!r:.80} says neither yes nor no; choose another metric")


def score_rows(metric, rows):
    """`score_replies` of rows of a report, as they stand."""
    replies = [ScoredReply(row.reply, row.box_scores) for row in rows]
    return score_replies(metric, replies, [row.answers or row.truth for row in rows])
