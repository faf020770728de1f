import json

from ivlkit.cli import main
from ivlkit.evaluation.compare import compare
from ivlkit.evaluation.control import text_control
from ivlkit.evaluation.evaluate import evaluate
from ivlkit.evaluation.metrics import contains
from ivlkit.models.load import load


class TestTextControl:
    def test_no_row_has_a_picture_and_no_question_comes_twice(self):
        records = list(text_control())
        assert len(records) == 70 and len({record.question for record in records}) == 70
        assert not any(record.images or record.video for record in records)
        assert {record.extra["task"] for record in records} == {
            *("sum", "arithmetic", "opposite", "facts", "language", "instructions")
        }

    def test_every_accepted_answer_is_right_and_another_row_s_hardly_ever(self):
        records = list(text_control())
        for record in records:
            assert all(contains(answer, record.extra["answers"]) for answer in record.extra["answers"])
            assert record.answer == record.extra["answers"][0]
        strays = [contains(one.answer, other.extra["answers"]) for one in records for other in records if one != other]
        assert sum(strays) / len(strays) < 0.01

    def test_nano_answers_some_and_is_compared_with_itself(self):
        report = evaluate(load("nano"), text_control(), metric="contains", progress=False)
        assert report.by("task")["opposite"][0] > 0.5
        assert compare(report, report).counts["lost"] == 0

    def test_the_command_line_knows_it_by_name(self, tiny, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["evaluate", str(tiny), "text-control", "--max-new-tokens", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["num_rows"], found["metric"]) == (70, "contains")
