import json
from types import SimpleNamespace

import pytest
from PIL import Image

from ivlkit.data.records import Record, Turn
from ivlkit.errors import DataError
from ivlkit.evaluation.evaluate import Report, Row, evaluate


def record(number, question, answer, **fields):
    turns = (Turn("user", question), Turn("assistant", answer))
    return Record(id=number, turns=turns, where=f"test.jsonl:{number}", **fields)


def report(*scores, **extra):
    rows = [
        Row(f"test.jsonl:{number}", "What?", "yes", "yes" if score else "no", score, extra={"task": f"t{number % 2}"})
        for number, score in enumerate(scores)
    ]
    return Report("exact_match", tuple(rows), {"model": "nano"} | extra)


class TestReport:
    def test_score_is_the_mean_of_the_rows(self):
        assert report(1, 1, 1, 0).score == 0.75

    def test_interval_is_a_point_when_all_rows_agree_and_holds_the_score_otherwise(self):
        assert report(1, 1, 1).interval == (1.0, 1.0)
        low, high = report(*[1, 0] * 50).interval
        assert 0.35 < low < 0.5 < high < 0.65

    def test_interval_is_the_same_every_time(self):
        assert report(1, 0, 0, 1).interval == report(1, 0, 0, 1).interval

    def test_by_gives_score_and_number_of_rows_of_each_value(self):
        assert report(1, 0, 1, 0).by("task") == {"t0": (1.0, 2), "t1": (0.0, 2)}

    def test_a_field_with_one_value_is_no_slice(self):
        assert report(1, 0).slice_fields == ["task"]
        assert report(1).slice_fields == []

    def test_as_json_it_keeps_every_row(self):
        found = json.loads(json.dumps(report(1, 0).to_dict()))
        assert found["score"] == 0.5 and found["num_rows"] == 2
        assert found["rows"][1] == {
            "where": "test.jsonl:1",
            "question": "What?",
            "truth": "yes",
            "reply": "no",
            "score": 0,
        }

    def test_a_report_of_other_rows_is_refused_as_before(self, tmp_path):
        with pytest.raises(DataError, match="different rows"):
            report(1, 1).save_html(tmp_path / "report.html", before=report(1))


class TestEvaluate:
    def test_rows_come_back_in_order_with_their_truth_and_fields(self, tiny_vlm):
        picture = Image.new("RGB", (224, 112), "white")
        records = [
            record(3, "<image>\nA long question about this picture, longer than the others", "one", images=(picture,)),
            record(1, "Hi", " two ", extra={"task": "greet"}),
        ]
        found = evaluate(tiny_vlm, records, progress=False, max_new_tokens=4)
        assert [row.where for row in found.rows] == ["test.jsonl:3", "test.jsonl:1"]
        assert [row.truth for row in found.rows] == ["one", "two"]
        assert found.rows[0].question == "A long question about this picture, longer than the others"
        assert found.rows[1].extra == {"task": "greet"}

    def test_replies_equal_those_of_chat(self, tiny_vlm):
        records = [
            record(number, text, "x") for number, text in enumerate(["Hi", "What is your name?", "one two three"])
        ]
        found = evaluate(tiny_vlm, records, progress=False, max_new_tokens=6)
        asked = [tiny_vlm.chat(one.question, max_new_tokens=6).text for one in records]
        assert [row.reply for row in found.rows] == asked

    def test_earlier_turns_are_given_as_written(self, tiny_vlm, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "ivlkit.evaluation.evaluate.reply_batch",
            lambda vlm, conversations, **_: asked.extend(conversations) or [SimpleNamespace(text="x")],
        )
        turns = (Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "And now?"), Turn("assistant", "x"))
        found = evaluate(tiny_vlm, [Record(id=0, turns=turns)], progress=False)
        assert asked == [(turns[:3], ())]
        assert (found.rows[0].question, found.rows[0].truth, found.score) == ("And now?", "x", 1.0)

    def test_a_metric_may_be_a_function(self, tiny_vlm):
        def half(reply, truth):
            return 0.5

        found = evaluate(tiny_vlm, [record(0, "Hi", "x")], metric=half, progress=False, max_new_tokens=2)
        assert (found.metric, found.score) == ("half", 0.5)

    def test_an_unknown_metric_is_named(self, tiny_vlm):
        with pytest.raises(DataError, match="'exact'; expected one of exact_match"):
            evaluate(tiny_vlm, [record(0, "Hi", "x")], metric="exact")

    def test_no_rows_are_an_error(self, tiny_vlm):
        with pytest.raises(DataError, match="no rows"):
            evaluate(tiny_vlm, [])
