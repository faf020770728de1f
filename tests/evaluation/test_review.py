"""Rows that deserve a look: their order, what was decided, both scores."""

import signal
from dataclasses import replace

import numpy as np
import pytest

from ivlkit.data.datasets.opening import open_data
from ivlkit.data.rows.records import Record, Turn
from ivlkit.errors import DataError
from ivlkit.evaluation.compare import compare
from ivlkit.evaluation.evaluate import evaluate
from ivlkit.evaluation.metrics import metric_source
from ivlkit.evaluation.report import Report, Row
from ivlkit.evaluation.review import review as module
from ivlkit.evaluation.review.review import EARLIER_TURNS, records_of, source_of, truth_losses
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import execute, write_run


def row(number, truth, reply, confidence=0.5, **fields):
    score = float(truth == reply)
    sure = {"confidence": confidence, "least_sure": (0, 1, 0.5)}
    return Row(
        f"rows.jsonl:{number}", "What?", truth, reply, score, extra={"source": f"t.csv:{number}"}, **sure, **fields
    )


REPORT = Report("exact_match", (row(2, "1", "1", 0.9), row(3, "1", "7", 0.5), row(4, "2", "3", 0.8)), {"model": "x"})


class TestLosses:
    def test_they_are_the_sum_of_the_answers_tokens_whatever_the_batch(self, tiny_vlm, draw_picture):
        """Against transformers' own mean loss of each row alone, times its tokens."""
        from ivlkit.data.collate import collate, normalise_tiles
        from ivlkit.data.encode import encode

        picture = draw_picture(224, 112)
        rows = [
            Record(0, (Turn("user", "<image>\nWhat?"), Turn("assistant", "a long truth of words")), (picture,), "a:1"),
            Record(1, (Turn("user", "Hi"), Turn("assistant", "x")), (), "a:2"),
            Record(2, (Turn("user", "Tell me more about it"), Turn("assistant", "two words")), (), "a:3"),
        ]
        expected = []
        for each in rows:
            batch = collate([encode(each, tiny_vlm.processor)], pad_token_id=0)
            tiles = {"pixel_values": normalise_tiles(batch["tiles"])} if len(batch["tiles"]) else {}
            logits = tiny_vlm.model(input_ids=batch["input_ids"], **tiles).logits[0, :-1].log_softmax(-1)
            targets = batch["labels"][0, 1:]
            places = (targets != -100).nonzero()[:, 0]
            expected.append(-float(logits[places, targets[places]].sum().detach()))
        assert truth_losses(tiny_vlm, rows, batch_size=3) == pytest.approx(expected, abs=1e-4)
        assert truth_losses(tiny_vlm, rows, batch_size=1) == pytest.approx(expected, abs=1e-4)


class TestOrders:
    def test_the_least_likely_truth_comes_first(self, tiny_vlm):
        rows = [Record(n, (Turn("user", "Hi"), Turn("assistant", "x " * (n + 1))), (), f"a:{n}") for n in range(4)]
        found = evaluate(tiny_vlm, rows, progress=False, max_new_tokens=2).review(tiny_vlm)
        losses = [line["loss"] for line in found.rows]
        assert losses == sorted(losses, reverse=True) and len(set(losses)) == 4
        assert losses == pytest.approx([truth_losses(tiny_vlm, rows)[number] for number in found.numbers], abs=1e-4)

    def test_wrong_and_sure_comes_first_and_right_and_sure_last(self):
        assert REPORT.review(order="sure").numbers == [2, 1, 0]

    def test_by_chance_it_is_the_same_for_a_seed(self):
        many = Report("exact_match", tuple(row(n, "1", "1") for n in range(40)), {})
        orders = [many.review(order="random", seed=seed).numbers for seed in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(40))

    def test_another_order_is_named(self):
        with pytest.raises(DataError, match="order='best'; expected one of loss, sure, random"):
            REPORT.review(order="best")

    def test_data_of_other_rows_is_refused(self, tiny_vlm):
        with pytest.raises(DataError, match="a report of 3 rows for 1 records"):
            REPORT.review(tiny_vlm, data=[Record(0, (Turn("user", "Hi"),), (), "a:1")])

    def test_a_row_of_several_pictures_asks_for_the_data(self, draw_picture):
        pictures = (draw_picture(), draw_picture())
        with pytest.raises(DataError, match=r"rows\.jsonl:2: 2 pictures; expected the data beside the report"):
            records_of(Report("exact_match", (row(2, "1", "1", images=pictures),), {}))

    def test_rows_with_earlier_turns_ask_for_the_data(self, tiny_vlm):
        turns = tuple(Turn(role, "x") for role in ("user", "assistant") * 2)
        report = evaluate(tiny_vlm, [Record(0, turns, (), "a:1")], progress=False, max_new_tokens=2)
        with pytest.raises(DataError, match="1 rows have earlier turns; expected the data"):
            report.review(tiny_vlm)
        assert len(report.review(tiny_vlm, data=[Record(0, turns, (), "a:1")]).losses) == 1
        assert compare(report, replace(report, details={})).measured_differently.keys().isdisjoint({EARLIER_TURNS})

    def test_a_row_says_where_it_stands_in_the_table_it_came_from(self):
        assert source_of(REPORT.rows[0]) == "t.csv:2"
        assert source_of(Row("rows.jsonl:2", "q", "a", "a", 1.0)) == "rows.jsonl:2"


class TestFolds:
    @pytest.fixture
    def run(self, write_rows, turns, draw_picture, tiny, tmp_path):
        """Of seven rows, of which the first two show one picture; it need not be trained."""
        for number in range(6):
            draw_picture(112, 112, seed=number).save(tmp_path / f"{number}.png")
        rows = [
            {"image": f"{max(0, number - 1)}.png", "conversations": turns(f"Q{number}", f"word {number}")}
            for number in range(7)
        ]
        chosen = recipe("nano-lora", model=str(tiny), total_batch=4, per_device_batch=4, epochs=1, learning_rate=0.1)
        return write_run(chosen, open_data(write_rows(rows)), tmp_path / "run")

    @pytest.fixture
    def report(self, run, tmp_path):
        rows = open_data(tmp_path / "train.jsonl")
        return Report("exact_match", tuple(Row(r.where, r.question, r.answer, "", 0.0) for r in rows), {})

    @pytest.fixture
    def trained(self, monkeypatch):
        """Runs train in this process at once; those that did."""
        found, handler = [], signal.getsignal(signal.SIGTERM)

        def train(recipe, data, *, validation, folder):
            run = write_run(recipe, data, folder, validation=validation)
            if run.state != "finished":
                found.append(run)
                execute(folder)
            return run

        monkeypatch.setattr(module, "train", train)
        yield found
        signal.signal(signal.SIGTERM, handler)

    def test_each_row_is_judged_by_a_model_that_has_not_seen_its_picture(self, run, report, trained, tmp_path):
        found = report.review(run, folds=2)
        data, expected = open_data(tmp_path / "train.jsonl"), {}
        for each in trained:
            left_out = sorted(set(range(7)) - set(np.load(each.folder / "rows.npy").tolist()))
            assert {0, 1} <= set(left_out) or not {0, 1} & set(left_out)
            expected |= dict(zip(left_out, truth_losses(each.load(), data.select(left_out)), strict=True))
        assert len(trained) == 2 and sorted(expected) == list(range(7))
        assert found.losses == pytest.approx([expected[row] for row in range(7)], abs=1e-4)
        assert found.numbers == sorted(range(7), key=lambda row: -found.losses[row])
        assert report.review(run, folds=2).losses == pytest.approx(found.losses, abs=1e-4) and len(trained) == 2

    @pytest.mark.parametrize("folds", [1, 7, 2.5])
    def test_there_are_at_most_as_many_as_pictures(self, run, report, folds):
        with pytest.raises(DataError, match="expected 2 to 6, its pictures"):
            report.review(run, folds=folds)

    def test_they_need_the_run(self, tiny_vlm, report):
        with pytest.raises(DataError, match="folds=2 with a VLM in the order 'loss'; expected the run that"):
            report.review(tiny_vlm, folds=2)

    def test_a_report_of_other_rows_is_refused(self, run):
        with pytest.raises(DataError, match="a report of 3 rows for 7 records"):
            REPORT.review(run, folds=2)


class TestDecisions:
    def test_they_are_written_as_the_table(self, tmp_path):
        (tmp_path / "t.csv").write_text("file;label\na;1\nb;1\nc;2\n")
        review = REPORT.review(order="sure")
        review.keep("t.csv:2")
        review.correct("t.csv:3", "7")
        review.drop("t.csv:4")
        assert review.save(tmp_path / "t.csv").path.read_text() == "file;label\na;1\nb;7\n"
        assert "3 decided" in repr(review)

    def test_a_source_that_is_not_in_the_report_is_named(self):
        with pytest.raises(DataError, match=r"t\.csv:9: no row of this report; expected a source such as t\.csv:2"):
            REPORT.review(order="sure").keep("t.csv:9")

    def test_the_reply_is_hidden_until_its_row_is_decided(self):
        review = REPORT.review(order="random")
        assert {line["reply"] for line in review.rows} == {None} and "hidden until decided" in review._repr_html_()
        review.keep("t.csv:3")
        assert {line["source"]: line["reply"] for line in review.rows} == {
            "t.csv:2": None,
            "t.csv:3": "7",
            "t.csv:4": None,
        }

    def test_both_scores_are_told_before_and_after(self):
        before = Report("exact_match", (row(2, "1", "4"), row(3, "1", "1"), row(4, "2", "2")), {})
        review = REPORT.review(order="random")
        review.correct("t.csv:3", "7")
        review.drop("t.csv:4")
        scores = {name: round(found[0], 3) for name, found in review.scores(before).items()}
        assert scores == {
            "before, old truths": 0.667,
            "before, new truths": 0.0,
            "after, old truths": 0.333,
            "after, new truths": 1.0,
        }

    def test_a_metric_of_one_s_own_is_asked_for_and_has_to_be_the_same(self):
        def same(reply, truth):
            return float(reply == truth)

        own = replace(REPORT, metric="same", details={"metric_source": metric_source(same)})
        review = own.review(order="random")
        review.correct("t.csv:3", "7")
        with pytest.raises(DataError, match="metric, same, is a function of your own; .* pass it too: metric=…"):
            review.scores()
        assert round(review.scores(metric=same)["after, new truths"][0], 3) == 0.667
        with pytest.raises(DataError, match="the metric exact_match for a report that has same; expected the same"):
            review.scores(metric="exact_match")
        with pytest.raises(DataError, match="the metric same, edited since the report was made"):
            review.rescored(replace(own, details={"metric_source": "another"}), metric=same)

    def test_an_answer_that_is_no_text_is_refused(self):
        with pytest.raises(DataError, match=r"t\.csv:3: corrected to 7; expected a text"):
            REPORT.review(order="sure").correct("t.csv:3", 7)

    def test_a_field_source_of_one_s_own_is_no_place(self):
        rows = tuple(replace(one, extra={"source": "web"}) for one in REPORT.rows)
        review = replace(REPORT, rows=rows).review(order="random")
        review.correct("rows.jsonl:3", "7")
        assert [line["source"] for line in review.rows if line["decision"]] == ["rows.jsonl:3"]
        assert [one.truth for one in review.rescored().rows] == ["1", "7", "2"]

    def test_rows_of_two_files_of_one_name_are_not_decided_together(self):
        rows = (row(2, "1", "1"), row(2, "9", "1"))
        review = replace(REPORT, rows=rows).review(order="random")
        with pytest.raises(DataError, match=r"t\.csv:2: 2 rows, from files of one name"):
            review.drop("t.csv:2")
        review = replace(REPORT, rows=(rows[0], rows[0])).review(order="random")  # `repeat_time`: 2
        review.keep("t.csv:2")

    def test_rows_that_the_model_chose_give_no_new_score(self):
        with pytest.raises(DataError, match='a review in the order "sure"; expected "random"'):
            REPORT.review(order="sure").rescored()
