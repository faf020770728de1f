import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivlkit.errors import DataError
from ivlkit.evaluation.compare import compare
from ivlkit.evaluation.intervals import bootstrap_interval
from ivlkit.evaluation.report import Report, Row


def report(scores, *, reply="a", images=(), **details):
    rows = [
        Row(f"test.jsonl:{n}", "What?", "yes", reply, float(score), images=images, extra={"task": f"t{n % 2}"})
        for n, score in enumerate(scores)
    ]
    return Report("exact_match", tuple(rows), {"model": "nano"} | details)


BEFORE, AFTER = report([1, 1, 0, 0, 0]), report([1, 0, 1, 1, 0])


class TestDifference:
    def test_a_report_against_itself_has_no_difference(self):
        found = compare(BEFORE, BEFORE)
        assert (found.difference, found.interval) == (0.0, (0.0, 0.0))
        assert found.counts == {"won": 0, "lost": 0, "both": 2, "neither": 3}

    def test_all_wrong_to_all_right_is_100_points(self):
        found = compare(report([0, 0]), report([1, 1]))
        assert (found.difference, found.interval) == (1.0, (1.0, 1.0))

    def test_difference_is_the_mean_of_the_rows(self):
        assert compare(BEFORE, AFTER).difference == pytest.approx(0.2)
        assert compare(AFTER, BEFORE).difference == pytest.approx(-0.2)

    def test_rows_hard_for_both_do_not_widen_the_interval(self):
        """10 of 200 rows differ, all won: paired, the gain is beyond chance; the two intervals alone overlap."""
        before, after = report([1] * 100 + [0] * 100), report([1] * 110 + [0] * 90)
        low, high = compare(before, after).interval
        assert 0.01 < low < 0.05 < high < 0.09
        assert before.interval[1] > after.interval[0]

    def test_it_is_the_bootstrap_of_the_differences(self):
        differences = np.array([0, -1, 1, 1, 0])
        assert compare(BEFORE, AFTER).interval == bootstrap_interval(differences)

    def test_rows_of_a_field_can_be_drawn_together(self):
        found = compare(report([0, 0] * 10), report([1, 0] * 10))
        assert found.interval_by("task") == (0.0, 1.0)

    def test_slices_stand_beside_each_other(self):
        assert compare(BEFORE, AFTER).by("task") == {
            "t0": (pytest.approx(1 / 3), pytest.approx(2 / 3), 3),
            "t1": (0.5, 0.5, 2),
        }

    def test_a_field_added_to_the_data_in_between_makes_slices_of_both(self, tmp_path):
        before = Report("exact_match", tuple(replace(row, extra={}) for row in BEFORE.rows), {})
        found = compare(before, AFTER)
        assert found.by("task") == compare(BEFORE, AFTER).by("task")
        assert "by task" in found.save_html(tmp_path / "page.html").read_text()
        assert "by task" in AFTER.save_html(tmp_path / "report.html", before=before).read_text()


class TestGroups:
    def test_rows_won_lost_both_and_neither(self):
        found = compare(BEFORE, AFTER)
        places = {name: [pair.after.where[-1] for pair in getattr(found, name)] for name in found.counts}
        assert places == {"won": ["2", "3"], "lost": ["1"], "both": ["0"], "neither": ["4"]}
        assert found.counts == {"won": 2, "lost": 1, "both": 1, "neither": 1}

    def test_a_score_of_half_counts_as_right(self):
        assert compare(report([0.4]), report([0.5])).counts["won"] == 1
        assert compare(report([0.5]), report([1.0])).counts["both"] == 1

    def test_disagreements_are_rows_with_other_replies(self):
        other = Report("exact_match", (*AFTER.rows[:3], *report([0] * 5, reply="b").rows[3:]), {})
        assert [pair.after.where[-1] for pair in compare(BEFORE, other).disagreements] == ["3", "4"]

    def test_a_gallery_shows_both_replies(self):
        html = compare(BEFORE, AFTER).won._repr_html_()
        assert "2 rows" in html and ">before<" in html and ">after<" in html


class TestRefused:
    def test_other_rows_are_named(self):
        other = Report("exact_match", (*AFTER.rows[:4], Row("x.jsonl:9", "Who?", "I", "me", 0.0)), {})
        with pytest.raises(DataError, match=r"test\.jsonl:4 \('What\?'\) and x\.jsonl:9 \('Who\?'\)"):
            compare(BEFORE, other)

    def test_other_pictures_under_equal_texts_are_other_rows(self):
        before = report([1, 0], images=(Path("photos/a.png"),))
        moved = report([1, 0], images=("/elsewhere/photos/a.png",))
        assert compare(before, moved).difference == 0
        other = replace(before, rows=(before.rows[0], replace(before.rows[1], images=("photos/b.png",))))
        with pytest.raises(
            DataError, match=r"test.jsonl:1 \('What\?'\), 1 of 2 are only in the first; .* one test part"
        ):
            compare(before, other)
        shuffled = replace(other, details={"pictures": "shuffled"})
        assert compare(before, shuffled).measured_differently  # a control: other pictures on purpose

    def test_how_many_rows_differ_is_said(self):
        other = Report("exact_match", tuple(replace(row, where=f"x{row.where}") for row in AFTER.rows[:3]), {})
        said = "different rows: 5 and 3, of which 5 are only in the first and 3 only in the second"
        with pytest.raises(DataError, match=said):
            compare(BEFORE, other)

    def test_another_metric_and_another_number_of_rows(self):
        with pytest.raises(DataError, match="one report has exact_match, the other f1"):
            compare(BEFORE, Report("f1", AFTER.rows, {}))
        with pytest.raises(DataError, match="different rows: 5 and 4"):
            compare(BEFORE, report([1, 0, 1, 1]))


def test_settings_that_differ_are_told_and_the_model_s_are_not():
    found = compare(report([1], max_tiles=12, seconds=3), report([1], max_tiles=6, seconds=4, weights="x"))
    assert found.measured_differently == {"max_tiles": (12, 6)}
    assert "Measured differently" in found._repr_html_()
    assert "Measured differently" not in compare(BEFORE, AFTER)._repr_html_()


def test_repr_says_scores_points_interval_and_rows():
    assert repr(compare(BEFORE, AFTER)) == (
        "Comparison(exact_match 40.0% → 60.0%, +20.0 points (-40.0 to +80.0); 2 won, 1 lost, 1 both, 1 neither)"
    )


def test_saved_reports_are_compared_from_their_folders(tmp_path):
    BEFORE.save_json(tmp_path / "before" / "report.json")
    AFTER.save_json(tmp_path / "after.json")
    assert compare(tmp_path / "before", str(tmp_path / "after.json")).difference == pytest.approx(0.2)


class TestPage:
    def test_it_is_one_file_with_pictures_of_each_group(self, tmp_path, draw_picture):
        images = (draw_picture(64, 64),)
        page = compare(report([1, 1, 0, 0], images=images), report([1, 0, 1, 0], images=images)).save_html(
            tmp_path / "new" / "page.html"
        )
        html = page.read_text()
        assert html.startswith("<!doctype html>") and html.count("<img ") == 4
        assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
        for heading in ("Won: only", "Lost: only", "Neither is", "Both are"):
            assert heading in html

    def test_it_stays_under_10_mb_and_says_what_is_left_out(self, tmp_path):
        """Noise is what compresses worst."""
        rng = np.random.default_rng(0)
        images = tuple(Image.fromarray(rng.integers(0, 256, (600, 600, 3), np.uint8)) for _ in range(12))
        found = compare(report([0] * 60, images=images), report([1] * 60, images=images))
        page = found.save_html(tmp_path / "page.html")
        assert 5_000_000 < page.stat().st_size < 10_000_000
        (shown,) = re.findall(r"Won: only the reply after is right \(60 rows, (\d+) shown\)", page.read_text())
        assert page.read_text().count('class="card good"') == int(shown) < 40

    def test_text_of_the_data_cannot_leave_its_place(self, tmp_path):
        hostile = report([1], reply="<script>alert(1)</script>")
        assert "<script" not in compare(hostile, hostile).save_html(tmp_path / "page.html").read_text()


class TestCsv:
    def read(self, path):
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    def test_every_row_has_both_replies_its_group_and_fields(self, tmp_path):
        rows = self.read(compare(BEFORE, report([1, 0, 1, 1, 0], reply='b, "é"\n')).save_csv(tmp_path / "rows.csv"))
        assert len(rows) == 5
        assert rows[2] == {
            **{"where": "test.jsonl:2", "group": "won", "question": "What?", "truth": "yes", "before": "a"},
            **{"after": 'b, "é"\n', "score_before": "0.0", "score_after": "1.0", "task": "t0"},
        }

    def test_a_field_named_like_a_column_has_its_own(self, tmp_path):
        reports = [report([1], reply="x") for _ in range(2)]
        for each in reports:
            each.rows[0].extra.update(truth="of the row", group="g")
        (row,) = self.read(compare(*reports).save_csv(tmp_path / "rows.csv"))
        assert (row["truth"], row["row_truth"]) == ("yes", "of the row")
        assert (row["group"], row["row_group"]) == ("both", "g")

    @pytest.mark.parametrize(
        ("reply", "cell"),
        [
            ("=1+1", "'=1+1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            (" -x", "' -x"),
            ("-5", "-5"),
            ("+1.5e3", "+1.5e3"),
            ("a=b", "a=b"),
        ],
    )
    def test_a_spreadsheet_runs_no_reply(self, tmp_path, reply, cell):
        (row,) = self.read(compare(report([1]), report([1], reply=reply)).save_csv(tmp_path / "rows.csv"))
        assert row["after"] == cell

    def test_any_end_of_a_line_stays_inside_its_cell(self, tmp_path):
        (row,) = self.read(compare(report([1]), report([1], reply="a\rb")).save_csv(tmp_path / "rows.csv"))
        assert row["after"] == "a\rb"

    def test_half_a_surrogate_pair_is_written_as_its_number(self, tmp_path):
        (row,) = self.read(compare(report([1]), report([1], reply="\udcff")).save_csv(tmp_path / "rows.csv"))
        assert row["after"] == "\\udcff"
