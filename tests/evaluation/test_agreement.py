"""Two people who labelled the same rows: how far they agree, told beside the score."""

import pytest

from ivlkit.data.datasets.opening import open_data
from ivlkit.data.rows.records import Record, Turn
from ivlkit.errors import DataError
from ivlkit.evaluation.report import Report, Row
from ivlkit.evaluation.review.agreement import cohens_kappa


@pytest.fixture
def label(tmp_path, draw_picture):
    """`label("anna", {0: "cat", …})` → her table; picture 3 lies in a folder of her own."""

    def write(name, answers):
        folder = tmp_path / name
        folder.mkdir()
        for number in answers:
            draw_picture(56, 56, seed=number).save(folder / f"{number}-{name}.png")
        rows = (f"{number}-{name}.png,What is it?,{answer}" for number, answer in answers.items())
        (folder / "labels.csv").write_text("\n".join(["file,question,answer", *rows]) + "\n")
        return folder / "labels.csv"

    return write


@pytest.fixture
def report_on():
    """`report_on(table)` → a report in which every reply is "cat"."""

    def make(table, metric="exact_match"):
        rows = [
            Row(r.where, "What is it?", r.answer, "cat", float(r.answer == "cat"), r.images, r.extra)
            for r in open_data(table)
        ]
        return Report(metric, tuple(rows), {})

    return make


ANNA = {number: "cat" if number % 2 else "dog" for number in range(30)}


def test_27_of_30_are_the_ceiling(label, report_on):
    """Interval after Wilson by hand; kappa: 0.9 equal, by chance (12·15 + 18·15) / 900 = 0.5."""
    ben = ANNA | dict.fromkeys((0, 2, 4), "cat")
    found = report_on(label("anna", ANNA)).with_labeller(label("ben", ben | {99: "dog"}))
    said = "Two labellers agree on 27 of 30 rows (74–97 %), kappa 0.80: no score above that means anything."
    assert said in found.warnings and said in repr(found) and said in found._repr_html_()
    assert found.labellers["different"] == [[f"labels.csv:{line}", "dog", "cat"] for line in (2, 4, 6)]


def test_only_rows_that_both_labelled_count_and_texts_get_no_kappa(label, report_on):
    second = {number: f"word {number}" for number in range(20, 40)}
    first = second | {number: "another" for number in (20, 21)} | {0: "x", 1: "y"}
    found = report_on(label("anna", first)).with_labeller(open_data(label("ben", second)))
    assert {name: found.labellers[name] for name in ("rows", "equal", "kappa")} == {
        "rows": 20,
        "equal": 18,
        "kappa": None,
    }


def test_answers_are_equal_as_the_metric_says(label, report_on):
    anna, ben = label("anna", ANNA), label("ben", {number: f"{answer}." for number, answer in ANNA.items()})
    assert report_on(anna).with_labeller(ben).labellers["equal"] == 0
    assert report_on(anna, "lenient_match").with_labeller(ben).labellers["equal"] == 30
    assert report_on(anna, "cider").with_labeller(anna).labellers["equal"] == 30


def test_labels_of_other_pictures_are_refused(label, report_on):
    with pytest.raises(DataError, match="none of 1 rows shows what one of the report's 30 does and asks the same"):
        report_on(label("anna", ANNA)).with_labeller(label("ben", {77: "cat"}))


def test_pictures_that_are_no_files_are_told_apart(draw_picture):
    uris = ["data:image/png;base64,AAAA", "data:image/png;base64,BBBB"]
    for first, second in (uris, (draw_picture(56, 56, seed=0), draw_picture(56, 56, seed=1))):
        rows = [Row(f"a:{n}", "What?", "cat", "cat", 1.0, (shown,)) for n, shown in enumerate((first, second))]
        ben = Record(0, (Turn("user", "<image>\nWhat?"), Turn("assistant", "dog")), (second,))
        found = Report("exact_match", tuple(rows), {}).with_labeller([ben])
        assert found.labellers["different"] == [["a:1", "cat", "dog"]]


def test_it_is_kept_with_the_report_and_belongs_to_all_of_its_rows(label, report_on, tmp_path):
    found = report_on(label("anna", ANNA)).with_labeller(label("ben", ANNA))
    found.save_json(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").labellers == found.labellers
    assert found.review(order="random").rescored().labellers == {}


@pytest.mark.parametrize(
    ("first", "second", "kappa"),
    [
        # Wikipedia's two readers of 50 proposals: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no
        ("y" * 25 + "n" * 25, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15, 0.4),
        ("ab" * 10, "ab" * 10, 1.0),
        ("ab" * 10, "ba" * 10, -1.0),
        ("aabb", "abab", 0.0),
        ("aaaa", "aaaa", None),
        ("abc", "abc", None),
    ],
)
def test_kappa_by_hand(first, second, kappa):
    assert cohens_kappa(list(first), list(second)) == (kappa if kappa is None else pytest.approx(kappa))
