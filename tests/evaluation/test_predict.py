"""Answers without truths: what may be asked about, the table, going on after a kill."""

import base64
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from PIL import Image

from ivlkit.cli import main
from ivlkit.data.datasets.questions import questions_of
from ivlkit.data.rows.records import Record, Turn
from ivlkit.errors import DataError
from ivlkit.evaluation.evaluate import evaluate
from ivlkit.evaluation.predict import predict
from ivlkit.models.load import load

NEW = {"progress": False, "max_new_tokens": 4}
ASKED = {"question": "What is it?", **NEW}


@pytest.fixture
def photos(tmp_path, draw_picture):
    """A folder of three pictures, one of them in a folder of its own, and a file that is none."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.PNG", "more/c.png")):
        draw_picture(112, 112, seed=number).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("mine")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    return tmp_path / "photos"


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class TestWhatIsAskedAbout:
    def test_every_picture_of_a_folder_in_the_order_of_the_names(self, tiny_vlm, photos):
        found = predict(tiny_vlm, photos, **ASKED)
        assert [row.extra["file"] for row in found] == ["a.PNG", "b.png", "more/c.png"]
        assert found[1].reply == tiny_vlm.chat("What is it?", photos / "b.png", max_new_tokens=4).text

    def test_other_files_of_the_folder_are_named(self, tiny_vlm, photos):
        said = "1 files that are no picture and no video, such as notes.txt"
        assert predict(tiny_vlm, photos, **ASKED).details["left aside"] == said

    def test_pictures_without_a_question_are_refused(self, tiny_vlm, photos):
        with pytest.raises(DataError, match=r"a\.PNG: no question; expected one that is asked about every picture"):
            predict(tiny_vlm, photos, **NEW)

    def test_a_folder_without_pictures_is_refused(self, tiny_vlm, tmp_path):
        with pytest.raises(DataError, match="no picture or video"):
            predict(tiny_vlm, tmp_path, **ASKED)

    def test_one_picture(self, photos):
        (record,), home = questions_of(photos / "b.png", question="What?")
        assert (record.turns, record.images, home) == ((Turn("user", "<image>\nWhat?"),), (photos / "b.png",), photos)

    def test_pictures_by_their_names_in_the_order_given(self, tiny_vlm, photos):
        names = [str(photos / name) for name in ("b.png", "a.PNG")]
        found = predict(tiny_vlm, [photos / "b.png", names[1]], **ASKED)
        assert [row.extra["file"] for row in found] == names
        assert found[0].reply == tiny_vlm.chat("What is it?", names[0], max_new_tokens=4).text
        with pytest.raises(DataError, match=r"b\.png: no question"):
            predict(tiny_vlm, names, **NEW)
        with pytest.raises(DataError, match=r"none\.png"):
            predict(tiny_vlm, [*names, "none.png"], **ASKED)

    def test_a_picture_in_the_row_itself_is_no_file(self, tiny_vlm, photos, tmp_path):
        uri = "data:image/png;base64," + base64.b64encode((photos / "b.png").read_bytes()).decode()
        row = {"image": uri, "question": "What is it?"}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        (found,) = predict(tiny_vlm, tmp_path / "rows.jsonl", **NEW)
        assert found.images == (uri,) and found.extra["file"] == ""

    def test_the_data_s_name_is_its_path(self, tiny_vlm, photos):
        assert predict(tiny_vlm, photos, **ASKED).details["data"] == str(photos)

    def test_a_video_is_asked_about_as_one(self, photos):
        (photos / "more" / "d.mp4").write_bytes(b"")
        *_, record = questions_of(photos, question="What?")[0]
        assert (record.video.path, record.question, record.images) == (photos / "more" / "d.mp4", "<video>\nWhat?", ())

    @pytest.mark.parametrize("header", ["file;question", "file;question;answer"])
    def test_a_table_with_answers_or_without(self, photos, header):
        table = photos.parent / "asked.csv"
        cells = ["B.png;What?;one", "a;And this?;two"]
        table.write_text(f"{header}\n" + "\n".join(";".join(row.split(";")[: header.count(";") + 1]) for row in cells))
        records, _ = questions_of(table, root=photos)
        assert [record.where for record in records] == ["asked.csv:2", "asked.csv:3"]
        assert [record.images for record in records] == [(photos / "b.png",), (photos / "a.PNG",)]
        assert [record.turns for record in records] == [
            (Turn("user", "<image>\nWhat?"),),
            (Turn("user", "<image>\nAnd this?"),),
        ]

    def test_one_sentence_for_every_row_of_a_table(self, photos):
        (photos / "t.csv").write_text("image\nb.png\n")
        assert questions_of(photos / "t.csv", question="How many are there?")[0][0].question == (
            "<image>\nHow many are there?"
        )

    def test_a_picture_of_a_table_that_is_missing_is_named(self, photos):
        (photos / "t.csv").write_text("image,question\nnone.png,What?\n")
        with pytest.raises(DataError, match=r"t\.csv:2: picture .*none\.png does not exist"):
            questions_of(photos / "t.csv")

    def test_rows_with_a_last_question_with_an_answer_behind_it_or_without_turns(self, write_rows, turns):
        path = write_rows(
            [
                {"image": "a.png", "conversations": turns("<image>\nWhat?")},
                {"conversations": turns("Hi", "Hello", "And now?", "x")},
                {"image": "b.png", "question": "Which?"},
            ]
        )
        records, root = questions_of(path)
        asked = [[turn.text for turn in record.turns] for record in records]
        assert asked == [["<image>\nWhat?"], ["Hi", "Hello", "And now?", "x"], ["<image>\nWhich?"]]
        assert records[2].images == (root / "b.png",)

    def test_a_broken_row_is_named(self, write_rows, turns):
        with pytest.raises(
            DataError, match=r"train\.jsonl:1: 2 pictures|train\.jsonl:1: 2 .*placeholder|train\.jsonl:1"
        ):
            questions_of(write_rows([{"image": ["a.png", "b.png"], "conversations": turns("<image>\nWhat?")}]))

    def test_a_question_beside_rows_that_have_their_own_is_refused(self, write_rows, turns):
        with pytest.raises(DataError, match=r"train\.jsonl:1: have their own questions"):
            questions_of(write_rows([{"conversations": turns("Hi")}]), question="What?")

    def test_a_row_without_a_question_is_refused(self):
        with pytest.raises(DataError, match=r"x:1: ends without a question"):
            questions_of([Record(id=0, turns=(Turn("system", "Hi"),), where="x:1")])

    def test_answers_are_not_read(self, tiny_vlm):
        turns = (Turn("user", "Hi"), Turn("assistant", "x"))
        given, not_given = (Record(id=0, turns=turns[:length], where="a:1") for length in (2, 1))
        assert predict(tiny_vlm, [given], **NEW).rows == predict(tiny_vlm, [not_given], **NEW).rows

    def test_replies_are_those_of_an_evaluation(self, tiny_vlm):
        rows = [Record(id=0, turns=(Turn("user", "Hi"), Turn("assistant", "x")), where="a:1")]
        asked, scored = predict(tiny_vlm, rows, **NEW)[0], evaluate(tiny_vlm, rows, **NEW).rows[0]
        assert (asked.reply, asked.confidence, asked.least_sure) == (scored.reply, scored.confidence, scored.least_sure)


class TestWhatAConfidenceIsWorth:
    def rows(self, *numbers):
        return [
            Record(id=n, turns=(Turn("user", f"Tell me about {n}"), Turn("assistant", "x")), where=f"a:{n}")
            for n in numbers
        ]

    def test_a_validation_report_of_the_model_makes_chances_of_confidences(self, tmp_path):
        nano = load("nano")
        known = evaluate(nano, self.rows(*range(50)), **NEW)
        sure = {"confidence": 0.8, "token_scores": (0.8,)}
        rows = tuple(replace(row, score=float(n % 5 > 0), **sure) for n, row in enumerate(known.rows))
        asked = [Record(id=0, turns=(Turn("user", "What is 2 + 2?"),), where="b:1")]
        found = predict(nano, asked, validation=replace(known, rows=rows), progress=False)
        assert found.calibration.temperature == pytest.approx(1, rel=0.02)  # four in five are right, as it says
        assert found.table()[0]["chance_right"] == pytest.approx(found[0].confidence, rel=0.05)
        assert "The surest" in repr(found) and "ncalibrated" not in repr(found)

    def test_validation_rows_may_be_given_and_are_kept_in_the_journal(self, tiny_vlm, tmp_path):
        found = predict(tiny_vlm, self.rows(3), validation=self.rows(0, 1), to=tmp_path / "a.csv", **NEW)
        assert "Uncalibrated: 0 whole answers, expected 50 or more" in repr(found)
        assert (tmp_path / "a.csv.replies" / "validation" / "report.json").exists()

    def test_on_the_command_line_their_pictures_lie_below_the_root(self, tiny, photos, write_rows, turns, capsys):
        asked, known = (
            write_rows([{"image": name, "conversations": turns("<image>\nWhat?", "x")}], name=f"{name}.jsonl")
            for name in ("a.PNG", "b.png")
        )
        command = ["predict", str(tiny), str(asked), "--root", str(photos), "--validation", str(known)]
        assert main([*command, "--max-new-tokens", "4"]) == 0
        assert "of 1 validation answers" in capsys.readouterr().out

    def test_a_report_of_another_model_is_refused(self, tiny_vlm):
        known = evaluate(tiny_vlm, self.rows(0), **NEW)
        other = replace(known, details=known.details | {"weights": "abc"})
        with pytest.raises(DataError, match="a validation report of a model with weights abc"):
            predict(tiny_vlm, self.rows(1), validation=other, **NEW)

    def test_rows_that_it_was_fitted_on_are_refused(self, tiny_vlm):
        known = evaluate(tiny_vlm, self.rows(0, 1), **NEW)
        with pytest.raises(DataError, match="a:1: is a validation row and is asked about"):
            predict(tiny_vlm, self.rows(1, 2), validation=known, **NEW)


class TestTheTable:
    def test_csv_has_a_line_a_row(self, tiny_vlm, photos, tmp_path):
        found = predict(tiny_vlm, photos, to=tmp_path / "answers.csv", **ASKED)
        lines = read_csv(tmp_path / "answers.csv")
        assert list(lines[0])[:5] == ["source", "file", "id", "question", "answer"]
        assert [line["answer"] for line in lines] == [row.reply for row in found]
        assert [line["file"] for line in lines] == ["a.PNG", "b.png", "more/c.png"]
        assert {line["question"] for line in lines} == {"What is it?"} and lines[0]["chance_right"] == ""

    def test_jsonl_has_the_same(self, tiny_vlm, photos, tmp_path):
        found = predict(tiny_vlm, photos, to=tmp_path / "answers.jsonl", **ASKED)
        assert [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == found.table()

    def test_another_ending_is_refused_before_the_first_question(self, photos):
        with pytest.raises(DataError, match=r"answers\.txt: ends with '\.txt'; expected \.csv or \.jsonl"):
            predict(None, photos, to="answers.txt", **ASKED)

    def test_a_file_that_predict_did_not_write_is_never_written_over(self, tiny_vlm, photos, write_rows, turns):
        rows = write_rows([{"conversations": turns("What?", "x")}])
        before = rows.read_bytes()
        with pytest.raises(
            DataError, match=r"\.jsonl: is there, but not .*\.replies, as predict keeps it; expected a new file"
        ):
            predict(tiny_vlm, rows, to=rows, **NEW)
        assert rows.read_bytes() == before

    def test_the_page_marks_the_least_sure_token_and_shows_hostile_text_as_text(self, tiny_vlm, photos, tmp_path):
        found = predict(tiny_vlm, photos, question="<script>alert(1)</script>", to=tmp_path / "a.csv", **NEW)
        page = found.save_html(tmp_path / "a.html").read_text()
        assert page.count("least sure of this") == 3 and "<script>alert" not in page


KILLED = """
import sys, time
from ivlkit.evaluation import journal
from ivlkit.evaluation.predict import predict
from ivlkit.models.load import load
append, batches = journal._append, []
wait = lambda: time.sleep(600 * (len(batches) == 3))  # for the kill, after three batches
journal._append = lambda *arguments: (append(*arguments), batches.append(1), wait())
predict(sys.argv[1], sys.argv[2], to=sys.argv[3], batch_size=2, progress=False, max_new_tokens=4)
"""


def test_killed_in_the_middle_it_goes_on_to_the_same_file(tiny, tiny_vlm, tmp_path, write_rows, turns, monkeypatch):
    data = write_rows([{"conversations": turns(f"Tell me {'more ' * (n % 3)}about {n}")} for n in range(12)])
    table, journal = tmp_path / "killed.csv", tmp_path / "killed.csv.replies" / "replies.jsonl"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tiny), str(data), str(table)])
    deadline, written = time.monotonic() + 300, 0
    while written < 6 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        written = journal.read_bytes().count(b"\n") if journal.exists() else 0
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and written == 6 and not table.exists()
    predict(tiny_vlm, data, to=tmp_path / "whole.csv", batch_size=2, **NEW)
    assert predict(tiny_vlm, data, to=table, batch_size=2, **NEW).details["rows asked in them"] == 6
    assert table.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    monkeypatch.setattr("ivlkit.models.chat._generate", None)
    predict(tiny_vlm, data, to=table, batch_size=2, **NEW)


def test_every_broken_picture_of_a_folder_is_named_before_the_first_is_asked_about(tiny_vlm, tmp_path, monkeypatch):
    monkeypatch.setattr("ivlkit.models.chat._generate", None)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.effect_noise((40, 30), 60).save(tmp_path / "photos" / name)
    whole = (tmp_path / "photos" / "b.png").read_bytes()
    for name in ("b.png", "c.png"):
        (tmp_path / "photos" / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="2 of 3 rows can't be used") as found:
        predict(tiny_vlm, tmp_path / "photos", question="What?", to=tmp_path / "answers.csv")
    assert [name for name in ("a.png", "b.png", "c.png") if f"\n  {name}: " in str(found.value)] == ["b.png", "c.png"]
    assert not (tmp_path / "answers.csv.replies").exists()


def test_the_bar_says_how_long_it_takes(tiny_vlm, capsys):
    rows = [Record(id=n, turns=(Turn("user", f"Tell me about {n}"),), where=f"a:{n}") for n in range(34)]
    predict(tiny_vlm, rows, max_new_tokens=2)
    assert re.search(r"34/34 \[\d+:\d+<\d+:\d+", capsys.readouterr().err)
