import json
from pathlib import Path

import pytest
from PIL import Image

from ivlkit.data.rows.records import Video
from ivlkit.errors import DataError
from ivlkit.evaluation.metrics import EXACT_METRICS, METRICS
from ivlkit.evaluation.report import Report, Row


def report(*scores, metric="exact_match", **details):
    rows = [
        Row(f"test.jsonl:{number}", "What?", "yes", "yes" if score else "no", score, extra={"task": f"t{number % 2}"})
        for number, score in enumerate(scores)
    ]
    return Report(metric, tuple(rows), {"model": "nano"} | details)


def rows_with(*extras):
    return Report("m", tuple(Row(f"{n}", "Q", "a", "a", n % 2, extra=extra) for n, extra in enumerate(extras)), {})


class TestScore:
    def test_score_is_the_mean_of_the_rows(self):
        assert report(1, 1, 1, 0).score == 0.75

    def test_interval_holds_the_score_and_is_wide_for_three_rows_that_agree(self):
        assert report(1, 1, 1).interval == pytest.approx((3 / (3 + 1.96**2), 1))
        low, high = report(*[1, 0] * 50).interval
        assert 0.35 < low < 0.5 < high < 0.65

    def test_interval_is_the_same_every_time(self):
        assert report(1, 0, 0, 1).interval == report(1, 0, 0, 1).interval

    def test_rows_of_one_group_are_drawn_together(self):
        found = report(*[1, 0] * 10)  # t0 all right, t1 all wrong
        assert found.interval_by("task") == (0.0, 1.0)

    def test_rows_about_the_same_picture_are_a_group(self):
        images = [Image.new("RGB", (4, 4), color) for color in ("red", "red", "blue", "blue")]
        rows = tuple(Row(f"{n}", "Q", "a", "a", float(n < 2), images=(image,)) for n, image in enumerate(images))
        assert Report("m", rows, {}).interval_by("images") == (0.0, 1.0)

    def test_rows_without_pictures_are_no_group(self):
        found = report(*[1, 0] * 10)
        assert found.interval_by("images") == found.interval

    def test_an_unknown_field_is_named_with_the_known_ones(self):
        with pytest.raises(DataError, match="no row has a field 'digit'; expected one of images, task"):
            report(1, 0).interval_by("digit")


class TestSlices:
    def test_by_gives_score_and_number_of_rows_of_each_value(self):
        assert report(1, 0, 1, 0).by("task") == {"t0": (1.0, 2), "t1": (0.0, 2)}

    def test_rows_without_the_field_are_a_slice_of_their_own(self):
        assert rows_with({"a": 1}, {}, {"a": 1}).by("a") == {1: (0.0, 2), None: (1.0, 1)}

    def test_numbers_stand_by_their_size_and_before_words(self):
        found = rows_with({"a": 10, "b": "10"}, {"a": None, "b": "a"}, {"a": 2.5, "b": "9"}, {"a": 9, "b": ""})
        assert list(found.by("a")) == [2.5, 9, 10, None] and list(found.by("b")) == ["9", "10", "", "a"]

    def test_any_kind_of_value_makes_a_slice(self):
        found = rows_with({"a": [1, 2]}, {"a": {"x": "é"}}, {"a": 0.5}, {"a": True})
        assert sorted(map(str, found.by("a"))) == ["0.5", "True", "[1, 2]", '{"x": "é"}']

    def test_a_field_with_one_value_is_no_slice(self):
        assert report(1, 0).slice_fields == ["task"]
        assert report(1).slice_fields == []

    def test_a_field_of_any_name_makes_a_slice(self):
        assert rows_with({"self": 1}, {"self": 2}).select(**{"self": 2}).score == 1.0

    def test_select_gives_the_report_of_a_slice(self):
        part = report(1, 0, 1, 0).select(task="t0")
        assert (part.score, len(part.rows)) == (1.0, 2)
        with pytest.raises(DataError, match="no row with {'task': 't9'}"):
            report(1, 0).select(task="t9")


class TestGallery:
    def test_worst_rows_come_first_in_the_order_of_the_data(self):
        worst = report(1, 0.5, 0, 1, 0).worst(3)
        assert [row.where for row in worst] == ["test.jsonl:2", "test.jsonl:4", "test.jsonl:1"]
        html = worst._repr_html_()
        assert "3 rows" in html and html.count('class="card bad"') == 2 and "score 0.50" in html


class TestControls:
    @pytest.mark.parametrize(
        ("right", "control", "warned"), [(9, 8, False), (9, 9, True), (9, 10, True), (10, 0, False)]
    )
    def test_a_difference_of_10_points_is_enough(self, right, control, warned):
        scores = report(*[1] * right, *[0] * (10 - right))
        other = report(*[1] * control, *[0] * (10 - control), pictures="shuffled")
        assert bool(scores.with_control(other).warnings) == warned

    def test_the_warning_names_both_scores(self):
        found = report(1, 1, 1, 0).with_control(report(1, 1, 1, 0, pictures="shuffled"))
        assert found.controls == {"shuffled": 0.75}
        assert found.warnings == [
            "With shuffled pictures the score is 75.0%, only 0.0 points under the 75.0% with the right ones; expected "
            "10 points or more. The model may answer without looking."
        ]
        assert found.warnings[0] in repr(found) and found.warnings[0] in found._repr_html_()

    def test_a_report_without_a_control_says_nothing(self):
        assert report(1, 0).warnings == []

    def test_only_a_control_of_the_same_rows_is_taken(self):
        with pytest.raises(DataError, match="control with 'right' pictures"):
            report(1, 0).with_control(report(1, 0, pictures="right"))
        with pytest.raises(DataError, match="different rows: 2 and 1"):
            report(1, 0).with_control(report(1, pictures="none"))
        with pytest.raises(DataError, match="'none' pictures for a report with 'shuffled' ones"):
            report(1, 0, pictures="shuffled").with_control(report(1, 0, pictures="none"))


def answered(*pairs, metric="exact_match"):
    """The report of (reply, truth) pairs as `evaluate` scores them."""
    score = EXACT_METRICS[metric]
    rows = (Row(f"{n}", "Q", truth, reply, score(reply, truth)) for n, (reply, truth) in enumerate(pairs))
    return Report(metric, tuple(rows), {})


class TestBaseline:
    def test_always_answering_the_most_frequent_truth_stands_beside_the_score(self):
        found = answered(*[("yes", "no")] * 5, *[("yes", "yes")])
        assert found.baseline == ("no", pytest.approx(5 / 6))
        said = "always answering 'no' scores 83.3%"
        assert said in repr(found) and said.replace("'", "&#x27;") in found._repr_html_()
        assert found.to_dict()["baseline"] == found.baseline

    def test_it_is_scored_as_the_replies_are(self):
        assert answered(("No.", "no"), ("no", "No"), ("a", "no"), metric="lenient_match").baseline == ("no", 1.0)
        assert answered(("No.", "no"), ("no", "No"), ("a", "no")).baseline == ("no", pytest.approx(2 / 3))

    def test_of_several_accepted_answers_any_counts(self):
        rows = tuple(Row(f"{n}", "Q", truth, "", 0.0, answers=("2", truth)) for n, truth in enumerate("1223"))
        assert Report("exact_match", rows, {}).baseline == ("2", 1.0)

    def test_where_no_truth_stands_twice_or_the_metric_is_of_long_answers_there_is_none(self):
        assert answered(("a", "a"), ("b", "b")).baseline is None
        assert rows_with({}, {}).baseline is None
        assert "always answering" not in repr(answered(("a", "a"), ("b", "b")))

    def test_a_class_with_fewer_than_5_rows_is_named(self):
        found = answered(*[("a", "apple")] * 5, *[("a", "lime")] * 4, ("a", "fig"))
        assert found.small_classes == {"lime": 4, "fig": 1} == found.to_dict()["small_classes"]
        assert found.warnings == [
            "Classes with fewer than 5 rows: 'lime' (4), 'fig' (1). The score says nothing about them."
        ]
        assert found.warnings[0] in repr(found)

    def test_free_answers_are_no_classes(self):
        assert answered(*[("a", f"{n}") for n in range(12)], ("a", "1")).small_classes == {}
        assert answered(*[("a", f"{n}") for n in range(21)] * 2).small_classes == {}
        assert answered(*[("a", "a")] * 4).small_classes == {}


class TestForm:
    def test_5_points_lost_to_form_are_said_with_the_metric_that_forgives_it(self):
        found = answered(*[("Yes.", "yes")], *[("no", "yes")] * 19)
        assert found.warnings == [
            "Without case, spaces and final punctuation the score would be 5.0%, 5.0 points more. If they don't "
            "matter, use the metric lenient_match."
        ]
        assert METRICS["lenient_match"]("Yes.", "yes") == 1.0

    def test_less_is_not_worth_a_word(self):
        assert answered(*[("Yes.", "yes")], *[("no", "yes")] * 20).warnings == []
        assert answered(*[("Yes.", "yes")] * 20, metric="lenient_match").warnings == []

    def test_a_metric_of_your_own_and_one_of_the_whole_report_are_left_alone(self):
        rows = answered(*[("Yes.", "yes")] * 20).rows
        assert Report("mine", rows, {}).warnings == Report("pope", rows, {}).warnings == []


class TestFiles:
    def test_json_gives_the_same_report_back(self, tmp_path):
        rows = (
            Row("a:1", "Q\n", "é", "\u202e", 0.5, images=("data:image/png;base64,//8=", "a.png"), answers=("é", "e")),
        )
        found = Report("f1", rows, {"model": "nano", "seed": 0}, {"f1": 0.5}, {"none": 0.25})
        assert Report.load(found.save_json(tmp_path / "new" / "report.json")) == found
        assert Report.load(tmp_path / "new") == found

    def test_half_a_surrogate_pair_is_saved_and_comes_back(self, tmp_path):
        """A row's file name that is not UTF-8 has it."""
        found = Report("m", (Row("a\udcff:1", "Q", "a", "a", 1.0, extra={"é": "\ud800"}),), {})
        assert Report.load(found.save_json(tmp_path / "r.json")) == found
        assert "é" in (tmp_path / "r.json").read_text(encoding="utf-8")

    @pytest.mark.parametrize("clip", [None, (1.0, 2.5)])
    def test_a_video_comes_back_with_its_clip(self, tmp_path, clip):
        found = Report("m", (Row("a:1", "Q", "a", "a", 1.0, video=Video(Path("v.mp4"), clip)),), {})
        assert Report.load(found.save_json(tmp_path / "r.json")) == found
        assert found.groups("images") == [(repr(Video(Path("v.mp4"), clip)),)]

    def test_a_list_of_frames_comes_back(self, tmp_path):
        video = Video(Path("0.png"), None, (Path("0.png"), Path("1.png")))
        found = Report("m", (Row("a:1", "Q", "a", "a", 1.0, video=video),), {})
        assert Report.load(found.save_json(tmp_path / "r.json")) == found

    def test_pictures_in_memory_are_left_out(self, tmp_path):
        rows = (Row("a:1", "Q", "a", "a", 1, images=(Image.new("RGB", (2, 2)), Path("a.png"))),)
        assert Report.load(Report("m", rows, {}).save_json(tmp_path / "r.json")).rows[0].images == ("a.png",)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "JSONDecodeError"),
            ("[]", "TypeError"),
            ("{}", "KeyError: 'format'"),
            ('{"format": 2}', "format 2 instead of 1"),
            ('{"format": 1, "metric": "m", "rows": [], "details": {}, "numbers": {}, "controls": {}}', "without rows"),
            ('{"format": 1, "metric": "m", "rows": [{"where": 1}]}', "TypeError"),
        ],
    )
    def test_another_file_is_no_report(self, tmp_path, text, said):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(DataError, match=f"report.json: no report .*{said}"):
            Report.load(tmp_path)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match="nowhere.json: can't be read"):
            Report.load(tmp_path / "nowhere.json")

    def test_as_json_it_keeps_every_row(self):
        found = json.loads(json.dumps(report(1, 0).to_dict()))
        assert found["score"] == 0.5 and found["num_rows"] == 2
        assert found["rows"][1] == {
            **{"where": "test.jsonl:1", "question": "What?", "truth": "yes", "reply": "no", "score": 0},
            **{"images": [], "extra": {"task": "t1"}, "answers": [], "video": None},
        }

    def test_a_report_of_other_rows_is_refused_as_before(self, tmp_path):
        with pytest.raises(DataError, match="different rows"):
            report(1, 1).save_html(tmp_path / "report.html", before=report(1))

    def test_a_corpus_metric_can_be_asked_of_any_report(self):
        assert report(1, 0).corpus("pope")["yes_rate"] == 0.5
        with pytest.raises(DataError, match="corpus metric 'f1'; expected one of pope, cider"):
            report(1, 0).corpus("f1")
