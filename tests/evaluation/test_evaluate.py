import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ivlkit.data.datasets.opening import open_data
from ivlkit.data.rows.records import Record, Turn
from ivlkit.errors import CheckpointError, DataError
from ivlkit.evaluation.compare import compare
from ivlkit.evaluation.evaluate import evaluate, fingerprint
from ivlkit.evaluation.metrics import METRICS, metric_name, metric_source
from ivlkit.evaluation.predict import predict
from ivlkit.evaluation.report import Report
from ivlkit.models.chat import Reply
from ivlkit.models.load import ORIGIN_FILE
from ivlkit.models.vlm import VLM

NEW = {"progress": False, "max_new_tokens": 4}


def record(number, question, answer, **fields):
    turns = (Turn("user", question), Turn("assistant", answer))
    return Record(id=number, turns=turns, where=f"test.jsonl:{number}", **fields)


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

    def test_a_model_that_it_loads_is_released_and_another_is_not(self, tiny, tiny_vlm, monkeypatch):
        rows, released = [record(0, "Hi", "x")], []
        monkeypatch.setattr(VLM, "release", lambda vlm: released.append(vlm))
        assert evaluate(str(tiny), rows, **NEW).rows == evaluate(tiny_vlm, rows, **NEW).rows
        predict(str(tiny), rows, **NEW)
        predict(tiny_vlm, rows, **NEW)
        with pytest.raises(DataError, match="no rows to evaluate"):
            evaluate(str(tiny), [], **NEW)
        assert len(released) == 3 and tiny_vlm not in released

    def test_earlier_turns_are_given_as_written(self, tiny_vlm, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "ivlkit.evaluation.evaluate.iterate_replies",
            lambda vlm, conversations, **_: asked.extend(conversations) or [[(0, Reply("x", ()))]],
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
        earlier, source = found, found.details["metric_source"]

        def half(reply, truth):
            return 0.25

        found = evaluate(tiny_vlm, [record(0, "Hi", "x")], metric=half, **NEW)
        assert compare(earlier, found).measured_differently["metric_source"] == (source, metric_source(half))
        assert "half was edited in between" in repr(compare(earlier, found))
        assert "edited" not in repr(compare(found, found))

    def test_an_unknown_metric_is_named(self, tiny_vlm):
        with pytest.raises(DataError, match="'exact'; expected one of exact_match"):
            evaluate(tiny_vlm, [record(0, "Hi", "x")], metric="exact")

    def test_no_rows_are_an_error(self, tiny_vlm):
        with pytest.raises(DataError, match="no rows"):
            evaluate(tiny_vlm, [])

    def test_rows_that_a_meta_file_repeats_are_said(self, tiny_vlm, write_rows, turns, tmp_path, recwarn):
        path = write_rows([{"id": number, "conversations": turns("Hi", str(number))} for number in range(4)])
        entry = {"root": ".", "annotation": path.name}
        for repeat, said in ((1, []), (2.5, ["6 of 10 rows of .* repeat others, as `repeat_time` says"])):
            (tmp_path / "meta.json").write_text(json.dumps({"a": entry | {"repeat_time": repeat}}))
            evaluate(tiny_vlm, tmp_path / "meta.json", **NEW)
            found = [str(one.message) for one in recwarn if "repeat_time" in str(one.message)]
            assert len(found) == len(said) and all(map(re.match, said, found))

    @pytest.mark.parametrize("rows", [[{"image": "a.png"}], ["a.png"], 5])
    def test_rows_that_are_no_records_are_refused(self, tiny_vlm, rows):
        with pytest.raises(
            DataError, match="a (dict|str|int) in a row's place; expected a record, as open_data has them"
        ):
            evaluate(tiny_vlm, rows)
        with pytest.raises(DataError, match="a (dict|str|int) in a row's place"):
            predict(tiny_vlm, rows, question="What?")

    @pytest.mark.parametrize("seed", [-5, 1.5, None])
    def test_a_seed_that_is_none_is_refused(self, tiny_vlm, seed):
        with pytest.raises(DataError, match=f"seed={seed}; expected a whole number, 0 or more"):
            evaluate(tiny_vlm, [record(0, "Hi", "x")], seed=seed)

    @pytest.mark.parametrize("turns", [(), (Turn("user", "Hi"),), (Turn("assistant", "x"),)])
    def test_a_row_without_question_or_answer_is_named(self, tiny_vlm, turns):
        with pytest.raises(DataError, match="record: does not end with a question and its answer"):
            evaluate(tiny_vlm, [Record(id=0, turns=turns)])

    def test_a_broken_truth_stops_before_the_first_reply(self, tiny_vlm, monkeypatch):
        monkeypatch.setattr("ivlkit.evaluation.evaluate.iterate_replies", None)
        rows = [record(1, "Where?", "[1, 2, 3, 4]"), record(2, "Where?", "left")]
        with pytest.raises(DataError, match=r"test\.jsonl:2: iou: the truth 'left' has no box"):
            evaluate(tiny_vlm, rows, metric="iou_at_50")

    def test_a_metric_that_gives_no_number_is_refused(self, tiny_vlm):
        with pytest.raises(DataError, match="metric broken: gave"):
            evaluate(tiny_vlm, [record(0, "Hi", "x")], metric=broken, **NEW)
        with pytest.raises(DataError, match=r"metric <lambda>: gave \[None\]; expected finite numbers"):
            evaluate(tiny_vlm, [record(0, "Hi", "x")], metric=lambda reply, truth: None, **NEW)

    def test_a_function_is_not_taken_for_a_metric_of_its_name(self, tiny_vlm):
        def f1(reply, truth):
            return 0.25

        found = evaluate(tiny_vlm, [record(0, "Hi", "x")], metric=f1, **NEW)
        assert found.metric == f"{__name__}.f1" and found.score == 0.25
        assert metric_name(METRICS["f1"]) == "f1"

    @pytest.mark.parametrize("metric", ["yes_no", "pope"])
    def test_a_truth_that_says_neither_yes_nor_no_stops_before_the_first_reply(self, tiny_vlm, metric):
        rows = [record(1, "Is it?", "No."), record(2, "Is it?", "否")]
        with pytest.raises(DataError, match=f"{metric}: the truth '否' says neither yes nor no"):
            evaluate(tiny_vlm, rows, metric=metric, **NEW)

    def test_the_tile_budget_overrides_model_and_rows(self, tiny_vlm, draw_picture, monkeypatch):
        tiles, encode_tiles = [], tiny_vlm.model.encode_tiles
        monkeypatch.setattr(
            tiny_vlm.model, "encode_tiles", lambda pixels: tiles.append(len(pixels)) or encode_tiles(pixels)
        )
        row = record(0, "<image>\nWhat?", "x", images=(draw_picture(448, 112),), max_tiles=2)
        counts = []
        for budget in (None, 1, 4):
            found = evaluate(tiny_vlm, [row], max_tiles=budget, **NEW)
            counts.append((tiles.pop(), found.details["max_tiles"]))
        assert counts == [(3, tiny_vlm.processor.max_tiles), (1, 1), (5, 4)]
        with pytest.raises(DataError, match="max_tiles=0; expected 1 or more"):
            evaluate(tiny_vlm, [row], max_tiles=0)


def broken(reply, truth):
    return float("nan")


class TestAnswers:
    def rows(self, answers):
        return [record(0, "Hi", "two", extra={"answers": answers, "task": "count"})]

    def test_a_row_with_answers_accepts_any_of_them(self, tiny_vlm):
        reply = tiny_vlm.chat("Hi", max_new_tokens=4).text
        (row,) = evaluate(tiny_vlm, self.rows(["other", reply]), **NEW).rows
        assert (row.truth, row.answers, row.score, row.extra) == ("two", ("other", reply), 1.0, {"task": "count"})

    def test_a_function_gets_them_as_a_tuple(self, tiny_vlm):
        seen = []
        evaluate(tiny_vlm, self.rows(["a", "b"]), metric=lambda reply, truth: seen.append(truth) or 0, **NEW)
        assert seen == [("a", "b")]

    @pytest.mark.parametrize("answers", [[], "two", [2], {"a": 1}])
    def test_anything_but_texts_is_refused(self, tiny_vlm, answers):
        with pytest.raises(DataError, match=r"test\.jsonl:0: `answers` is"):
            evaluate(tiny_vlm, self.rows(answers), **NEW)


class TestCorpusMetrics:
    def test_its_numbers_stand_in_the_report(self, tiny_vlm):
        found = evaluate(tiny_vlm, [record(0, "Is it?", "yes"), record(1, "Is it not?", "no")], metric="pope", **NEW)
        assert found.metric == "pope" and found.score == found.numbers["accuracy"]
        assert set(found.numbers) == {"accuracy", "precision", "recall", "f1", "yes_rate", "unclear"}
        assert found.corpus("pope") == found.numbers


class TestBoxScores:
    ROWS = [record(n, "Where?", "[0, 0, 500, 500]") for n in range(2)]

    @pytest.fixture
    def says_boxes(self, monkeypatch):
        """A model whose first reply is a sure wrong box before an unsure right one; `.asked` counts its batches."""
        asked, text = [], "[900, 900, 950, 950] [0, 0, 500, 500]"
        replies = [Reply(text, (), tokens=((20, 0.9), (37, 0.5))), Reply("", ())]

        def reply(vlm, conversations, *, probabilities, done, **_):
            asked.append(probabilities)
            return [[(n, each) for n, each in enumerate(replies) if n not in done]]

        monkeypatch.setattr("ivlkit.evaluation.evaluate.iterate_replies", reply)
        return asked

    def test_a_box_s_score_is_its_tokens_probability(self, tiny_vlm, says_boxes):
        found = evaluate(tiny_vlm, self.ROWS, metric="ap50", progress=False)
        assert [row.box_scores for row in found.rows] == [(0.9, 0.5), ()]
        assert found.numbers == {"ap50": pytest.approx(51 / 101 / 2), "without_box": 0.5, "scored": 1.0}
        assert found.corpus("ap50") == found.numbers and says_boxes == [True]

    def test_they_are_kept_with_the_replies(self, tiny_vlm, says_boxes, tmp_path):
        first = evaluate(tiny_vlm, self.ROWS, metric="exact_match", to=tmp_path, progress=False)
        again = evaluate(tiny_vlm, self.ROWS, metric="ap50", to=tmp_path, progress=False)
        assert again.numbers["scored"] == 1.0
        assert [row.box_scores for row in Report.load(tmp_path).rows] == [row.box_scores for row in first.rows]

    def test_a_row_whose_truth_has_no_box_is_one_where_none_is_right(self, tiny_vlm, says_boxes):
        found = evaluate(tiny_vlm, [self.ROWS[0], record(1, "Where?", "There is none.")], metric="ap", progress=False)
        assert found.rows[1].score == 1.0
        with pytest.raises(DataError, match=r"test\.jsonl:1: ap: no truth has a box"):
            evaluate(tiny_vlm, [record(1, "Where?", "There is none.")], metric="ap", progress=False)


@pytest.fixture
def pictured(draw_picture):
    """Three rows with a picture each, and one without."""
    rows = [record(n, "<image>\nWhat is it?", "x", images=(draw_picture(112, 112, seed=n),)) for n in range(3)]
    return [*rows, record(3, "Hi", "x")]


class TestPictures:
    def test_without_pictures_the_question_alone_is_asked(self, tiny_vlm, pictured):
        found = evaluate(tiny_vlm, pictured, pictures="none", **NEW)
        assert {row.reply for row in found.rows[:3]} == {tiny_vlm.chat("What is it?", max_new_tokens=4).text}
        assert found.rows[0].images == () and found.details["pictures"] == "none"

    def test_shuffled_rows_are_asked_with_the_picture_they_show(self, tiny_vlm, pictured):
        found = evaluate(tiny_vlm, pictured, pictures="shuffled", **NEW)
        for row, own in zip(found.rows[:3], pictured, strict=False):
            assert row.images != own.images
            assert row.reply == tiny_vlm.chat("What is it?", list(row.images), max_new_tokens=4).text

    def test_rows_that_could_not_be_shuffled_are_told(self, tiny_vlm, pictured):
        assert "not shuffled" not in evaluate(tiny_vlm, pictured, pictures="shuffled", **NEW).details
        found = evaluate(tiny_vlm, pictured[2:], pictures="shuffled", **NEW)
        assert found.details["not shuffled"].startswith("1 rows: no other row has as many pictures")

    def test_the_control_set_says_that_a_random_model_does_not_look(self, tiny_vlm, pictured):
        right, none = (evaluate(tiny_vlm, pictured, pictures=pictures, **NEW) for pictures in ("right", "none"))
        assert right.with_control(none).warnings == [
            "With no pictures the score is 0.0%, only 0.0 points under the 0.0% with the right ones; expected "
            "10 points or more. The model may answer without looking."
        ]


class TestAsTrained:
    @pytest.fixture
    def changed(self, tiny_vlm):
        """`changed(max_tiles=3)`: the model with another processor."""
        return lambda **fields: replace(tiny_vlm, processor=replace(tiny_vlm.processor, **fields))

    def test_other_tiles_than_the_checkpoint_s_are_an_error_unless_asked_for(self, changed):
        vlm = changed(max_tiles=3)
        with pytest.raises(CheckpointError, match="trained with max_tiles 12, asked with 3; expected the same"):
            evaluate(vlm, [record(0, "Hi", "x")], **NEW)
        assert evaluate(vlm, [record(0, "Hi", "x")], max_tiles=3, **NEW).details["max_tiles"] == 3

    def test_another_system_prompt_is_an_error(self, changed, tmp_path):
        origin = {"base": "nano", "template": "internlm2-chat", "system_message": "Trained.", "max_tiles": 12}
        (tmp_path / ORIGIN_FILE).write_text(json.dumps(origin))
        vlm = replace(changed(), folder=tmp_path)
        with pytest.raises(CheckpointError, match="trained with system_message 'Trained.', asked with"):
            evaluate(vlm, [record(0, "Hi", "x")], **NEW)

    def test_another_template_is_an_error(self, changed, tmp_path):
        (tmp_path / ORIGIN_FILE).write_text(json.dumps({"base": "nano", "template": "phi3-chat"}))
        with pytest.raises(CheckpointError, match="trained with template 'phi3-chat'"):
            evaluate(replace(changed(), folder=tmp_path), [record(0, "Hi", "x")], **NEW)


def questions(count):
    return [record(number, f"Tell me {'more ' * (number % 5)}about {number}", "x") for number in range(count)]


def replies(report):
    return [row.reply for row in report.rows]


def forget(folder, *, keep):
    """As after a kill: only the first lines are there."""
    path = folder / "replies.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:keep]))


class TestGoingOn:
    def test_what_is_there_is_not_asked_again(self, tiny_vlm, tmp_path, monkeypatch):
        first = evaluate(tiny_vlm, questions(6), to=tmp_path, **NEW)
        monkeypatch.setattr("ivlkit.models.chat._generate", None)
        again = evaluate(tiny_vlm, questions(6), to=tmp_path, **NEW)
        assert again.rows == first.rows and again.details["rows asked in them"] == 0

    def test_the_rest_is_asked_and_the_report_is_the_same(self, tiny_vlm, tmp_path):
        first = evaluate(tiny_vlm, questions(9), to=tmp_path, batch_size=2, **NEW)
        forget(tmp_path, keep=5)
        again = evaluate(tiny_vlm, questions(9), to=tmp_path, batch_size=2, **NEW)
        assert again.rows == first.rows and again.details["rows asked in them"] == 4

    def test_sampled_replies_go_on_as_they_would_have(self, tiny_vlm, tmp_path):
        options = {"do_sample": True, "temperature": 5.0, "batch_size": 2, "progress": False, "max_new_tokens": 6}
        first = evaluate(tiny_vlm, questions(9), to=tmp_path / "a", **options)
        forget(tmp_path / "a", keep=5)
        assert replies(evaluate(tiny_vlm, questions(9), to=tmp_path / "a", **options)) == replies(first)
        assert replies(evaluate(tiny_vlm, questions(9), seed=1, **options)) != replies(first)

    def test_sampling_leaves_the_caller_s_random_state(self, tiny_vlm):
        torch.manual_seed(5)
        evaluate(tiny_vlm, questions(2), do_sample=True, **NEW)
        after = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(after, torch.rand(1))

    def test_another_metric_or_a_mended_truth_needs_no_new_reply(self, tiny_vlm, tmp_path, monkeypatch):
        first = evaluate(tiny_vlm, questions(3), to=tmp_path, **NEW)
        monkeypatch.setattr("ivlkit.models.chat._generate", None)
        mended = [
            replace(one, turns=(one.turns[0], Turn("assistant", row.reply)))
            for one, row in zip(questions(3), first.rows, strict=True)
        ]
        assert evaluate(tiny_vlm, mended, to=tmp_path, metric="contains", **NEW).score == 1.0

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"max_new_tokens": 5}, "generation"),
            ({"pictures": "none"}, "pictures"),
            ({"seed": 3}, "seed"),
            ({"max_tiles": 3}, "questions"),
        ],
    )
    def test_other_settings_are_refused(self, tiny_vlm, tmp_path, change, said):
        evaluate(tiny_vlm, questions(2), to=tmp_path, **NEW)
        with pytest.raises(DataError, match=f"holds an evaluation with {said}"):
            evaluate(tiny_vlm, questions(2), to=tmp_path, **(NEW | change))

    def test_other_questions_and_another_picture_are_refused(self, tiny_vlm, tmp_path):
        evaluate(tiny_vlm, questions(2), to=tmp_path, **NEW)
        with pytest.raises(DataError, match="holds an evaluation with questions"):
            evaluate(tiny_vlm, questions(3), to=tmp_path, **NEW)

    def test_a_picture_that_has_changed_on_disk_is_refused(self, tiny_vlm, tmp_path):
        path = tmp_path / "picture.png"
        row = record(0, "<image>\nWhat?", "x", images=(path,))
        for colour in ("red", "red", "blue"):
            Image.new("RGB", (224, 112), colour).save(path)
            if colour == "red":
                evaluate(tiny_vlm, [row], to=tmp_path / "out", **NEW)
        with pytest.raises(DataError, match="holds an evaluation with questions"):
            evaluate(tiny_vlm, [row], to=tmp_path / "out", **NEW)

    def test_a_file_in_the_folder_s_place_is_named(self, tiny_vlm, tmp_path):
        (tmp_path / "out").write_text("mine")
        for to in (tmp_path / "out", tmp_path / "out" / "below"):
            with pytest.raises(DataError, match="out.*: can't be a folder of replies"):
                evaluate(tiny_vlm, questions(1), to=to, **NEW)

    def test_another_model_is_refused(self, tiny_vlm, tmp_path):
        evaluate(tiny_vlm, questions(2), to=tmp_path, **NEW)
        weight = tiny_vlm.model.lm_head.weight
        with torch.no_grad():
            weight[0, 0] += 1
        try:
            with pytest.raises(DataError, match="holds an evaluation with weights"):
                evaluate(tiny_vlm, questions(2), to=tmp_path, **NEW)
        finally:
            with torch.no_grad():
                weight[0, 0] -= 1

    def test_the_fingerprint_is_of_the_weights_wherever_they_lie(self, tiny, tiny_vlm):
        from ivlkit.models.load import load

        assert fingerprint(load(tiny).model) == fingerprint(tiny_vlm.model)

    def test_the_folder_keeps_the_report(self, tiny_vlm, tmp_path):
        found = evaluate(tiny_vlm, questions(3), to=tmp_path, **NEW)
        assert Report.load(tmp_path) == found


KILLED = """
import sys, time
options = {"batch_size": 2, "progress": False, "max_new_tokens": 4}
from ivlkit.data.datasets.opening import open_data
from ivlkit.evaluation import evaluate, journal
from ivlkit.models.load import load
append, batches = journal._append, []
wait = lambda: time.sleep(600 * (len(batches) == 3))  # for the kill, after three batches
journal._append = lambda *arguments: (append(*arguments), batches.append(1), wait())
evaluate.evaluate(load(sys.argv[1]), open_data(sys.argv[2]), to=sys.argv[3], **options)
"""


def test_an_evaluation_killed_in_the_middle_goes_on_to_the_same_report(tiny, tiny_vlm, tmp_path, write_rows, turns):
    data = write_rows([{"conversations": turns(f"Tell me about {number}", "x")} for number in range(20)])
    folder, written = tmp_path / "killed", 0
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tiny), str(data), str(folder)])
    deadline = time.monotonic() + 300
    while written < 6 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        path = folder / "replies.jsonl"
        written = path.read_bytes().count(b"\n") if path.exists() else 0
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and written == 6
    whole = evaluate(tiny_vlm, open_data(data), to=tmp_path / "whole", batch_size=2, **NEW)
    after = evaluate(tiny_vlm, open_data(data), to=folder, batch_size=2, **NEW)
    assert after.rows == whole.rows and after.details["rows asked in them"] == 14
    changing = {"seconds", "rows asked in them"}
    assert {key: value for key, value in after.details.items() if key not in changing} == {
        key: value for key, value in whole.details.items() if key not in changing
    }


def test_the_measured_speeds_are_of_equal_replies():
    """`benchmarks/evaluate_gpu.py`, where the embedded model computes in float32."""
    command = [sys.executable, "benchmarks/evaluate_gpu.py", "nano", "--rows", "6", "--one-by-one", "5"]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    root = Path(__file__).parents[2]
    done = subprocess.run([*command, "--batch-size", "4"], capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    _, *measured = map(json.loads, done.stdout.splitlines())
    assert [(line["new_tokens"], line["equal"]) for line in measured] == [(2, "5 of 5"), (32, "5 of 5")]
