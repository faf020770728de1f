"""Every metric: its limits, values worked out by hand, and a public implementation where there is one."""

import random
import string

import jiwer
import pytest
import sacrebleu
from rapidfuzz.distance import Levenshtein
from rouge_score import rouge_scorer

from ivlkit.errors import DataError
from ivlkit.evaluation import metrics
from ivlkit.evaluation.metrics import (
    CORPUS_METRICS,
    METRICS,
    anls,
    bleu,
    character_accuracy,
    character_error_rate,
    cider,
    cider_of_words,
    contains,
    corpus_bleu,
    corpus_character_error_rate,
    edit_distance,
    exact_match,
    f1,
    json_fields,
    lenient_match,
    multiple_choice,
    number,
    pope,
    relaxed_accuracy,
    rouge_l,
    vqa_accuracy,
    yes_no,
)
from ivlkit.evaluation.normalise import caption_words, squad_words, vqa_text

CIDER_EXPECTED = [3.192933180, 2.179509989, 1.598630940]


def random_texts(count, letters="abc ", longest=12, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices(letters, k=rng.randint(0, longest))) for _ in range(count)]


class TestAllRowMetrics:
    TRUTHS = {
        "iou": "[0, 0, 500, 500]",
        "iou_at_50": "[0, 0, 500, 500]",
        "json_fields": '{"a": 1}',
        "multiple_choice": "B",
        "yes_no": "yes",
    }
    WRONG = {"yes_no": "No.", "relaxed_accuracy": "7"}

    def test_every_metric_is_found_by_its_own_name(self):
        tables = (METRICS, CORPUS_METRICS)
        assert all(function.__name__ == name for table in tables for name, function in table.items())

    @pytest.mark.parametrize("name", METRICS)
    def test_the_truth_itself_is_worth_1(self, name):
        truth = self.TRUTHS.get(name, "four red cats sat on the mat")
        assert METRICS[name](truth, truth) == pytest.approx(1.0)

    @pytest.mark.parametrize("name", METRICS)
    def test_another_reply_is_worth_0_and_an_empty_one_too(self, name):
        truth = self.TRUTHS.get(name, "four red cats sat on the mat")
        assert METRICS[name](self.WRONG.get(name, "?"), truth) == 0.0
        if name != "yes_no":  # POPE's rule takes silence for a yes
            assert METRICS[name]("", truth) == 0.0

    @pytest.mark.parametrize("name", sorted(set(METRICS) - {"vqa_accuracy"}))
    def test_the_best_of_several_accepted_answers_decides(self, name):
        truth = self.TRUTHS.get(name, "four red cats sat on the mat")
        other = {
            "yes_no": "no",
            "iou": "[900, 900, 950, 950]",
            "iou_at_50": "[900, 900, 950, 950]",
            "json_fields": "[]",
        }
        assert METRICS[name](truth, (other.get(name, "dogs"), truth)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("reply", "truth", "score"),
    [
        ("407", "407", 1.0),
        (" 407\n", "407", 1.0),
        ("two  words", "two words", 1.0),
        ("", "", 1.0),
        ("407", "408", 0.0),
        ("407.", "407", 0.0),
        ("Paris", "paris", 0.0),
        ("", "407", 0.0),
    ],
)
def test_exact_match_collapses_whitespace_and_nothing_else(reply, truth, score):
    assert exact_match(reply, truth) == score


@pytest.mark.parametrize(
    ("reply", "truth", "score"),
    [
        ("It is Paris.", "paris", 1.0),
        ("407", "4", 0.0),
        ("the 4 cats", "4", 1.0),
        ("$4", "$4", 1.0),
        ("It costs 4.", "4", 1.0),
        ("It costs 4.5", "4", 0.0),
        ("It costs 4.5", "4.5", 1.0),
        ("0.5", "5", 0.0),
        ("1,000 cats", "1", 0.0),
        ("1,2,3", "2", 1.0),
        ("on 31.12.2020", "2020", 1.0),
        ("4.5 or 4", "4", 1.0),
        ("a concatenation", "cat", 0.0),
        ("New\n York", "new york", 1.0),
        ("这是红色的", "红色", 1.0),
        ("anything", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_contains_looks_for_whole_words_in_any_case(reply, truth, score):
    assert contains(reply, truth) == score


@pytest.mark.parametrize(
    ("reply", "truth", "score"),
    [
        ("new  york.", "New York", 1.0),
        ("NEWYORK", "New York", 1.0),
        ("Yes !", "yes", 1.0),
        ("是。", "是", 1.0),
        ("New-York", "New York", 0.0),
        (".5", "5", 0.0),
        ("", "yes", 0.0),
    ],
)
def test_lenient_match_drops_case_spaces_and_the_punctuation_at_the_end(reply, truth, score):
    assert lenient_match(reply, truth) == score


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


class TestUnicode:
    """A Mac's keyboard and file names write "é" as two characters: it is the same answer."""

    @pytest.mark.parametrize("name", sorted(set(METRICS) - {"iou", "iou_at_50", "json_fields", "multiple_choice"}))
    def test_every_metric_of_texts_takes_both_forms_for_one(self, name):
        texts = (f"four {COMPOSED} on the red mat", f"four {DECOMPOSED} on the red mat")
        for reply, truth in (texts, texts[::-1]):
            assert METRICS[name](reply, truth) == METRICS[name](reply, [truth]) == pytest.approx(1.0)

    def test_fields_of_json_too_keys_and_escapes_included(self):
        truth = f'{{"{COMPOSED}": "{COMPOSED}"}}'
        assert json_fields(f'{{"{DECOMPOSED}": "cafe\\u0301"}}', truth) == 1.0
        assert json_fields(truth, f'{{"{DECOMPOSED}": "{DECOMPOSED}"}}') == 1.0

    def test_whole_reports_too(self):
        replies, truths = [f"{DECOMPOSED} on a mat", "a dog"], [f"{COMPOSED} on a mat", "a dog"]
        assert corpus_character_error_rate(replies, truths)["character_error_rate"] == 0.0
        assert cider(replies, truths) == cider(truths, truths)
        assert corpus_bleu(replies, truths)["bleu"] == pytest.approx(1.0)
        assert vqa_accuracy(DECOMPOSED, [COMPOSED] * 10) == 1.0


@pytest.mark.parametrize(
    ("reply", "truth", "score"),
    [
        ("1,5", "1.5", 1.0),
        ("1.50", "1,5", 1.0),
        ("1 234,50 €", "€1,234.5", 1.0),
        ("1.234.567,8", "1,234,567.8", 1.0),
        ("1'234'567", "1234567", 1.0),
        ("1\u202f234", "1234", 1.0),
        ("1,00,000", "100000", 1.0),
        ("１，２３４．５", "1234.5", 1.0),
        ("٤٢", "42", 1.0),
        ("−5", "-5", 1.0),
        ("5", "-5", 0.0),
        ("1e3", "1000", 1.0),
        ("1,234", "1234", 1.0),  # ambiguous: read as in English
        ("1.234", "1.234", 1.0),
        ("1.234", "1234", 0.0),
        ("0,234", "0.234", 1.0),
        ("5 kg", "5", 1.0),
        ("5", "5 kg", 1.0),
        ("It weighs 5kg.", "5 kg", 1.0),
        ("5 g", "5 kg", 0.0),
        ("5 %", "5%", 1.0),
        ("5 m²", "5 m²", 1.0),
        ("There are 4.", "4", 1.0),
        ("3 or 4", "4", 0.0),
        ("3-4", "4", 0.0),
        ("in 2020 300 came", "2020300", 0.0),
        ("CO2", "2", 0.0),
        ("four", "4", 0.0),
        ("", "4", 0.0),
        ("31.12.2020", "31.12.2020", 1.0),  # no number: equal as texts
        ("12:30", "12.30", 0.0),
        ("None.", "none", 1.0),
        ("1e999", "1e999", 1.0),
        ("0", "none", 0.0),
    ],
)
def test_a_number_is_the_same_however_it_is_written(reply, truth, score):
    assert number(reply, truth) == score


class TestF1:
    def test_shared_words_count_as_often_as_both_have_them(self):
        assert f1("a red cat", "the cat") == pytest.approx(2 / 3)
        assert f1("cat cat cat", "cat dog") == pytest.approx(2 / 5)

    def test_only_articles_is_no_word(self):
        assert f1("the", "a") == 1.0 and f1("the", "cat") == 0.0

    def test_words_lose_case_punctuation_and_articles(self):
        assert squad_words("The cat's (red) hat.") == ["cats", "red", "hat"]


class TestVqaAccuracy:
    @pytest.mark.parametrize(("agreeing", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
    def test_leaving_each_of_ten_people_out_in_turn(self, agreeing, score):
        answers = ["cat"] * agreeing + [f"other {letter}" for letter in string.ascii_lowercase[: 10 - agreeing]]
        assert vqa_accuracy("a Cat.", answers) == pytest.approx(score)

    def test_one_answer_is_right_or_wrong(self):
        assert vqa_accuracy("two", "2") == 1.0 and vqa_accuracy("three", "2") == 0.0

    def test_any_other_number_of_answers_is_refused(self):
        with pytest.raises(DataError, match="3 answers; expected the ten"):
            vqa_accuracy("x", ["x", "y", "z"])

    @pytest.mark.parametrize(
        ("text", "normal"),
        [
            ("The two cats.", "2 cats"),
            ("1,000", "1000"),
            ("3.5", "3.5"),
            ("U.S.", "us"),
            ("dont", "don't"),
            ("couldnt've", "couldn't've"),
            ("x-ray", "x ray"),
            ("x - ray", "x ray"),
            ("yes!", "yes"),
            ("It's an apple", "it 's apple"),
            ("none", "0"),
            ("a\nb\tc", "b c"),
            ("", ""),
        ],
    )
    def test_text_is_normalised_as_the_challenge_does(self, text, normal):
        assert vqa_text(text) == normal


class TestAnls:
    def test_half_of_the_letters_right_is_the_last_that_counts(self):
        assert anls("abxx", "abcd") == 0.5
        assert anls("axxx", "abcd") == 0.0
        assert anls("abcx", "abcd") == 0.75

    def test_case_and_whitespace_do_not_count(self):
        assert anls("NEW   york", "new York ") == 1.0

    def test_the_length_is_of_the_collapsed_text(self):
        assert anls("ab  x", "ab  c") == 0.75


@pytest.mark.parametrize(
    ("reply", "truth", "score"),
    [
        ("95", "100", 1.0),
        ("105", "100", 1.0),
        ("94.9", "100", 0.0),
        ("105.1", "100", 0.0),
        ("100", "105.2", 1.0),  # 4.94 % of the truth, 5.2 % of the reply
        ("100", "95.1", 0.0),  # 5.15 % of the truth, 4.9 % of the reply
        ("5%", "0.05", 1.0),
        ("5%", "5", 0.0),
        ("-96", "-100", 1.0),
        ("0.0", "0", 1.0),
        ("0.01", "0", 0.0),
        ("0", "7", 0.0),
        ("Red", "red", 1.0),
        ("red", "7", 0.0),
        ("nan", "7", 0.0),
        ("inf", "7", 0.0),
    ],
)
def test_relaxed_accuracy_allows_5_percent_of_the_truth(reply, truth, score):
    assert relaxed_accuracy(reply, truth) == score


class TestCharacters:
    @pytest.mark.parametrize(
        ("first", "second", "edits"),
        [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("cat", "cart", 1), ("kitten", "sitting", 3), ("é", "e", 1)],
    )
    def test_edit_distance(self, first, second, edits):
        assert edit_distance(first, second) == edits

    def test_edit_distance_equals_rapidfuzz(self):
        texts = random_texts(400, "abc é漢😀")
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
        assert [edit_distance(*pair) for pair in pairs] == [Levenshtein.distance(*pair) for pair in pairs]

    def test_character_error_rate_equals_jiwer(self):
        texts = [text.strip() for text in random_texts(200)]
        pairs = [pair for pair in zip(texts[::2], texts[1::2], strict=True) if pair[1]]
        expected = [jiwer.cer(truth, reply) for reply, truth in pairs]
        assert [character_error_rate(*pair) for pair in pairs] == pytest.approx(expected)
        replies, truths = zip(*pairs, strict=True)
        found = corpus_character_error_rate(replies, truths)["character_error_rate"]
        assert found == pytest.approx(jiwer.cer(list(truths), list(replies)))

    def test_accuracy_is_what_the_error_rate_leaves_and_never_negative(self):
        assert character_accuracy("cat", "cart") == 0.75
        assert character_error_rate("much too long", "cat") > 1 and character_accuracy("much too long", "cat") == 0.0

    def test_of_several_truths_the_nearest_is_counted(self):
        found = corpus_character_error_rate(["cat", "dog"], [("horse", "cart"), "dog"])
        assert found == {"rows": [0.75, 1.0], "character_error_rate": pytest.approx(1 / 7)}


@pytest.mark.parametrize(
    ("reply", "truth", "score"),
    [
        ("B", "B", 1.0),
        ("b", "B", 1.0),
        ("(B)", "B", 1.0),
        ("B. blue", "B", 1.0),
        ("B", "B. blue", 1.0),
        ("The answer is (B).", "B", 1.0),
        ("Answer: B", "B", 1.0),
        ("答案是B", "B", 1.0),
        ("I choose (B) here", "B", 1.0),
        ("blue", ("B", "Blue"), 1.0),
        ("A cat", "A", 0.0),
        ("A", "B", 0.0),
        ("(A) or (B)", "B", 0.0),
        ("B and C", "B", 0.0),
        ("B, C", "B", 0.0),
        ("(B) (C)", "B", 0.0),
        ("B. or C.", "B", 0.0),
        ("The answer is B or C", "B", 0.0),
        ("The answer is (B) and (C).", "B", 0.0),
        ("A, a cat", "A", 1.0),
        ("A, I think, as B is red", "A", 1.0),
        ("B. x", "B", 1.0),
        ("B\nbecause it is blue", "B", 1.0),
        ("**B**\n\nIt is blue", "B", 1.0),
        ('"B"', "B", 1.0),
        ("B - blue", "B", 1.0),
        ("A-frame", "A", 0.0),
        ("", "B", 0.0),
    ],
)
def test_a_choice_is_read_and_never_guessed(reply, truth, score):
    assert multiple_choice(reply, truth) == score


class TestPope:
    def test_all_right_and_all_wrong(self):
        assert pope(["yes", "no"], ["yes", "no"]) == {
            **{"rows": [1.0, 1.0], "accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0},
            **{"yes_rate": 0.5, "unclear": 0.0},
        }
        wrong = pope(["no", "yes"], ["yes", "no"])
        assert (wrong["accuracy"], wrong["precision"], wrong["recall"], wrong["f1"]) == (0.0, 0.0, 0.0, 0.0)

    def test_always_yes_has_full_recall_and_half_precision(self):
        found = pope(["Yes"] * 4, ["yes", "yes", "no", "no"])
        assert (found["accuracy"], found["precision"], found["recall"]) == (0.5, 0.5, 1.0)
        assert found["f1"] == pytest.approx(2 / 3) and found["yes_rate"] == 1.0

    def test_counts_worked_out_by_hand(self):
        """3 hits, 1 false alarm, 2 misses, 4 right rejections."""
        replies = ["yes"] * 3 + ["yes"] + ["no"] * 2 + ["no"] * 4
        truths = ["yes"] * 3 + ["no"] + ["yes"] * 2 + ["no"] * 4
        found = pope(replies, truths)
        assert found["accuracy"] == 0.7 and found["precision"] == 0.75 and found["recall"] == 0.6
        assert found["f1"] == pytest.approx(2 / 3) and found["yes_rate"] == 0.4

    def test_no_yes_at_all_is_0_not_an_error(self):
        assert pope(["no"], ["no"])["precision"] == 0.0

    def test_what_says_neither_is_a_yes_and_is_counted(self):
        assert pope(["A dog.", ""], ["yes", "no"])["unclear"] == 1.0

    @pytest.mark.parametrize(
        ("reply", "truth", "score"),
        [
            ("No!", "no", 1.0),
            ("NO, there is none", "no", 1.0),
            ("There is not a dog", "no", 1.0),
            ("Yes. There is no cat.", "yes", 1.0),
            ("Nothing", "no", 0.0),
        ],
    )
    def test_the_first_sentence_decides(self, reply, truth, score):
        assert yes_no(reply, truth) == score


class TestJsonFields:
    TRUTH = '{"total": 4, "items": ["tea", "milk"], "paid": true}'

    @pytest.mark.parametrize(
        ("reply", "score"),
        [
            ('{"paid": true, "items": ["tea", "milk"], "total": 4.0}', 1.0),
            ('Here:\n```json\n{"total": 4, "items": ["tea", "milk"], "paid": true}\n```', 1.0),
            ('{"total": 4, "items": [" tea ", "milk"], "paid": 1}', 0.75),
            ('{"total": 4}', 0.25),
            ('{"total": 4, "items": ["tea", "milk"], "paid": true, "tip": 1}', 0.8),
            ('{"total": "4"}', 0.0),
            ("{}", 0.0),
            ('{"total": 4', 0.0),
            ("no idea", 0.0),
        ],
    )
    def test_right_fields_out_of_all_fields(self, reply, score):
        assert json_fields(reply, self.TRUTH) == pytest.approx(score)

    def test_an_empty_object_equals_an_empty_object(self):
        assert json_fields("{}", "{}") == 1.0

    def test_a_truth_without_json_is_refused(self):
        with pytest.raises(DataError, match="holds no JSON"):
            json_fields("{}", "four")

    def test_brackets_without_end_cost_no_time_and_no_crash(self):
        assert json_fields("[" * 5000, "[1]") == 0.0


class TestCaptions:
    REFERENCES = [
        ["a cat sits on a mat", "the cat is on the mat"],
        ["two dogs run in the park", "dogs running through grass", "two dogs play"],
        ["a man rides a red bike"],
    ]
    REPLIES = ["a cat on a mat", "two dogs run through the grass", "a red bus"]

    def words(self, texts):
        return [text.split() for text in texts]

    def test_cider_of_the_reference_itself_is_10(self):
        """Three rows without a word in common, each with all four lengths of n-grams."""
        texts = [["aa ab ac ad ae"], ["ba bb bc bd be"], ["ca cb cc cd ce"]]
        found = cider_of_words(self.words([each[0] for each in texts]), [self.words(each) for each in texts])
        assert found == pytest.approx([10.0, 10.0, 10.0])

    def test_cider_of_no_shared_word_and_of_one_row_alone_is_0(self):
        assert cider_of_words([["x"], ["y"]], [[["a", "b"]], [["c", "d"]]]) == [0.0, 0.0]
        assert cider_of_words([["a", "b"]], [[["a", "b"]]]) == [0.0]

    def test_cider_equals_the_published_code(self):
        """pycocoevalcap 1.2 on these tokens; the package itself, where it is installed, is asked in the next test."""
        found = cider_of_words(self.words(self.REPLIES), [self.words(each) for each in self.REFERENCES])
        assert found == pytest.approx(CIDER_EXPECTED, abs=1e-6)

    def test_cider_equals_the_package_where_it_is_installed(self):
        cider_module = pytest.importorskip("pycocoevalcap.cider.cider")
        words = random_texts(90, "abcdefg     ", 60, seed=1)
        replies, references = words[:30], [words[30 + 2 * number : 32 + 2 * number] for number in range(30)]
        _, expected = cider_module.Cider().compute_score(
            dict(enumerate(references)), {n: [r] for n, r in enumerate(replies)}
        )
        found = cider_of_words(self.words(replies), [self.words(each) for each in references])
        assert found == pytest.approx(expected.tolist(), abs=1e-6)

    def test_cider_of_texts_takes_their_words(self):
        found = cider(["A cat on a mat.", "Two dogs run through the grass!", "a red bus"], self.REFERENCES)
        assert found["rows"] == pytest.approx(CIDER_EXPECTED, abs=1e-6)
        assert found["cider"] == pytest.approx(sum(CIDER_EXPECTED) / 3)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("A man's T-shirt, don't.", ["a", "man", "'s", "t-shirt", "do", "n't"]),
            ("They're here; it’s 3.5 m", ["they", "'re", "here", "it", "'s", "3.5", "m"]),
            ("", []),
            ("...!?", []),
        ],
    )
    def test_words_of_a_caption(self, text, words):
        assert caption_words(text) == words

    def test_bleu_equals_sacrebleu_and_takes_rows_with_unequal_numbers_of_references(self):
        replies = ["the cat is on the mat", "two dogs play"]
        found = corpus_bleu(replies, [("the cat sits on the mat", "a cat is on the mat"), "two dogs play in grass"])
        references = [["the cat sits on the mat", "two dogs play in grass"], ["a cat is on the mat", None]]
        assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(replies, references).score / 100)
        assert found["signature"].startswith("nrefs:var|case:mixed")
        assert 0 < bleu("the cat", "the cat sat") < 1

    def test_rouge_l_equals_rouge_score(self):
        expected = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score("the cats sat", "a cat sat down")
        assert rouge_l("a cat sat down", "the cats sat") == pytest.approx(expected["rougeL"].fmeasure)
        assert rouge_l("a cat sat down", "the cats sat") == pytest.approx(4 / 7)

    def test_a_missing_library_is_named_with_the_command(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
        with pytest.raises(DataError, match="pip install sacrebleu"):
            metrics.bleu("a", "a")
