"""Confidence: against a forward pass over the reply, values worked out by hand, and what it is worth."""

import math
import random

import pytest

from ivlkit.data.rows.records import Turn
from ivlkit.errors import DataError
from ivlkit.evaluation.confidence import (
    calibration_error,
    field_spans,
    fit_temperature,
    ranking_score,
    scored,
    tempered,
)
from ivlkit.evaluation.report import Report, Row
from ivlkit.models.chat import Reply


def reply(text, *tokens, is_ended=True):
    """A reply of tokens (text, probability), and a closing one."""
    ends, place = [], 0
    for piece, probability in tokens:
        place += len(piece)
        ends.append((place, probability))
    return Reply(text, (), tokens=tuple(ends), is_ended=is_ended)


class TestScores:
    def test_the_confidence_is_the_product_with_the_closing_token(self):
        found = scored(reply("407", ("4", 0.5), ("0", 0.8), ("7", 0.9), ("", 0.5)))
        assert found.confidence == pytest.approx(0.18)
        assert found.least_sure == (0, 1, 0.5)

    def test_the_closing_token_may_be_the_least_sure(self):
        found = scored(reply("4", ("4", 0.9), ("", 0.5)))
        assert found.least_sure == (1, 1, 0.5)
        assert Row("a", "q", None, "4", None, **vars(found)).least_sure_token == "(end)"

    def test_a_cut_reply_has_none(self):
        found = scored(reply("40", ("4", 0.5), ("0", 0.8), is_ended=False))
        assert found.confidence is None and found.least_sure == (0, 1, 0.5)

    def test_a_value_for_each_field_of_a_json_answer(self):
        text = '{"number": "407", "sum": 11}'
        tokens = [('{"number": "', 0.9), ("40", 0.5), ("7", 0.5), ('", "sum": ', 0.9), ("11", 0.3), ("}", 0.9), ("", 1)]
        assert scored(reply(text, *tokens)).field_scores == pytest.approx({"number": 0.9**2 * 0.25, "sum": 0.3})

    @pytest.mark.parametrize(
        ("text", "spans"),
        [
            ('{"sum": 11}', {"sum": (8, 10)}),
            ('{"a": [1, 2] , "b":{"c": "}"}}', {"a": (6, 12), "b": (19, 29)}),
            ('{"a\\"b": null}', {'a"b': (9, 13)}),
            ('{"a": 1, "b": tru', {"a": (6, 7)}),
            ("407", {}),
            ("{}", {}),
        ],
    )
    def test_where_the_values_of_a_json_object_stand(self, text, spans):
        assert field_spans(text) == spans


def report(confidences, rights, truth="1"):
    rows = []
    for n, (sure, right) in enumerate(zip(confidences, rights, strict=True)):
        scores = {"confidence": sure, "token_scores": (sure or 0.5,), "least_sure": (0, 1, sure or 0.5)}
        rows.append(Row(f"v:{n}", "q", truth, "1", float(right), **scores))
    return Report("exact_match", tuple(rows), {"weights": "abc"})


def draws(count, *, temperature=2.0):
    """Confidences of one token, and answers whose odds to be right are its odds ** (1 / temperature)."""
    rng = random.Random(0)
    confidences = [rng.random() for _ in range(count)]
    odds = [(value / (1 - value)) ** (1 / temperature) for value in confidences]
    return confidences, [rng.random() < value / (1 + value) for value in odds]


class TestCalibration:
    def test_the_temperature_that_the_answers_were_drawn_with_is_found(self):
        confidences, rights = draws(20_000)
        assert fit_temperature([(value,) for value in confidences], rights) == pytest.approx(2.0, rel=0.05)

    def test_a_reply_of_several_tokens_by_hand(self):
        """Odds 9 and 4 become 3 and 2: 3/4 · 2/3; shorter replies are padded with what is certain."""
        assert tempered([(0.9, 0.8), (0.9,)], 2.0) == pytest.approx([0.5, 0.75], abs=1e-3)

    def test_at_temperature_one_it_is_the_confidence(self):
        assert tempered([(0.9, 0.5)], 1.0) == pytest.approx([0.45])

    def test_other_replies_beside_it_change_nothing(self):
        alone = tempered([(0.9,)], 20.0)
        assert tempered([(0.9,), (0.9,) * 30], 20.0)[0] == alone[0]

    def test_its_chances_are_how_often_answers_are_right(self):
        confidences, rights = draws(5000)
        found = report(confidences, rights).calibration()
        chances = tempered([(value,) for value in confidences], found.temperature)
        assert found.chances == tuple(sorted(chances, reverse=True))
        assert calibration_error(confidences, rights) > 0.07 > 0.03 > calibration_error(chances, rights)

    def test_fewer_than_50_rows_are_uncalibrated(self):
        found = report(*draws(49)).calibration()
        assert found.temperature is None and found.chance_right(report([0.5], [1]).rows[0]) is None
        assert "Uncalibrated: 49 whole answers, expected 50 or more." in repr(found)
        assert report(*draws(50)).calibration().temperature is not None

    def test_all_right_is_uncalibrated(self):
        assert report([0.5] * 60, [1] * 60).calibration().why == "all answers are right"

    def test_boxes_only_rank(self):
        found = report(*draws(60), truth="[1, 2, 3, 4]").calibration()
        assert found.temperature is None and "only ranks" in found.why

    def test_the_sentence_names_the_surest_that_are_right_and_the_rest(self):
        """Of 99 answers the surest 62 hold one that is wrong, all others are: 61 of 62 is the last group of 98 %."""
        rights = [True] * 30 + [False] + [True] * 31 + [False] * 37
        found = report([0.99 - n / 100 for n in range(99)], rights).calibration()
        assert repr(found).startswith(
            "The surest 63% of 99 validation answers are 98% right (91–100); look at the other 37%. Temperature"
        )

    def test_where_none_are_sure_enough_the_surest_fifth_is_told(self):
        found = report([0.995 - n / 101 for n in range(100)], [n % 2 for n in range(100)]).calibration()
        assert found.surest[:2] == (0.2, 0.5)

    def test_a_cut_answer_counts_as_the_least_sure(self):
        found = report([None, 0.5], [0, 1]).calibration()
        assert found.chances == (0.5, 0.0) and found.rights == (True, False)

    def test_a_report_of_an_earlier_version_is_refused(self):
        old = Report("exact_match", (Row("v:1", "q", "1", "1", 1.0),), {})
        with pytest.raises(DataError, match="1 of 1 rows have no confidence"):
            old.calibration()

    def test_its_curve_says_the_sentence(self):
        found = report(*draws(100)).calibration()
        assert found.figure().alt == repr(found) and repr(found)[:20] in found._repr_html_()


class TestMeasures:
    def test_ranking_is_the_share_of_pairs_in_order_ties_half(self):
        assert ranking_score([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == (1 + 1 + 0.5 + 1) / 4
        assert ranking_score([0.9, 0.5], [True, True]) is None

    def test_the_calibration_error_is_weighed_by_rows(self):
        assert calibration_error([0.75] * 20, [True] * 20) == pytest.approx(0.25)
        assert calibration_error([0.0] * 10 + [1.0] * 10, [False] * 10 + [True] * 10) == 0.0


class TestOnTheEmbeddedModel:
    def test_it_is_that_of_a_forward_pass_over_the_reply(self, tmp_path):
        """Replies of one to three digits, padded in one batch, against each reply as the truth of a training row."""
        from dataclasses import replace

        from ivlkit.data.datasets.opening import open_data
        from ivlkit.evaluation.evaluate import evaluate
        from ivlkit.evaluation.review.review import truth_losses
        from ivlkit.models.load import load
        from ivlkit.nano.digits import write_digit_strips

        nano = load("nano")
        records = list(open_data(write_digit_strips(tmp_path, rows=6, digits=(1, 3), tasks=("read",))))
        rows = evaluate(nano, records, progress=False).rows
        said = [
            replace(record, turns=(record.turns[0], Turn("assistant", row.reply)))
            for record, row in zip(records, rows, strict=True)
        ]
        forced = [math.exp(-loss) for loss in truth_losses(nano, said, batch_size=1)]
        assert [row.confidence for row in rows] == pytest.approx(forced, abs=1e-4)
        assert truth_losses(nano, said, batch_size=6) == pytest.approx(truth_losses(nano, said, batch_size=1), abs=1e-4)
