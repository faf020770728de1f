"""The Python side of labelling: the table, its journal, what is sent when; no browser."""

import csv
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import ivlkit as ivl
from ivlkit.bench import label as module
from ivlkit.bench.label import Item
from ivlkit.bench.labels import Labels, answer_text, answer_values
from ivlkit.errors import DataError, IvlkitError

pytest.importorskip("anywidget", reason="no widget without anywidget (pip install anywidget)")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder `photos` of three pictures, a text and a hidden picture, below the working folder."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "more/c.png")):
        Image.fromarray(np.full((60, 80, 3), 40 * number, np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "note.txt").write_text("no picture")
    (tmp_path / "photos" / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / ".ipynb_checkpoints" / "a-checkpoint.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.fixture
def begin(monkeypatch):
    """`begin(…)` → a `Labelling` without a browser, its threads not started; `.sent` is what it would be told."""

    def start(*args, **options):
        opened = ivl.label(*args, **options)
        opened.sent = []
        monkeypatch.setattr(opened.widget, "send", lambda message, buffers=None: opened.sent.append((message, buffers)))
        return opened

    yield start
    for opened in list(module._open.values()):
        opened.close()
    module._open.clear()


def answer(opened, number, *values, how="typed", id=None):
    row = opened.rows[number]
    said = {"file": row["file"], "question": row["question"], "values": list(values), "how": how}
    opened.receive({"do": "answer", "id": id or f"{number}-{how}-{values}", **said})


def table(path="labels.csv"):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def told(opened, key):
    return [message for message, _ in opened.sent if key in message]


def test_pictures_of_a_linked_folder_are_asked_about_as_predict_does(photos, begin, tmp_path):
    (tmp_path / "disk").mkdir()
    (photos / "a.png").rename(tmp_path / "disk" / "d.png")
    (photos / "linked").symlink_to(tmp_path / "disk")
    names = [row["file"] for row in begin("photos", "What?").rows]
    assert names == ["photos/b.jpg", "photos/linked/d.png", "photos/more/c.png"]


class TestTable:
    def test_opens_as_data_as_it_is_and_is_encoded(self, photos, begin):
        opened = begin("photos/", "What number?")
        for number, text in enumerate(("17", 'say "8", twice\nor more', "日本")):
            answer(opened, number, text)
        for data in (ivl.open_data("labels.csv"), ivl.from_csv("labels.csv")):
            assert [record.turns[-1].text for record in data] == ["17", 'say "8", twice\nor more', "日本"]
            assert [record.turns[-2].text for record in data] == ["<image>\nWhat number?"] * 3
            example = ivl.encode(data[0], ivl.load_processor("nano"))
            assert (example.labels != -100).sum() > 0 and len(example.tiles) > 0

    def test_says_of_each_answer_where_it_came_from(self, photos, begin):
        opened = begin("photos/", "What?", suggest={"photos/a.png": ("17", 0.9), "photos/b.jpg": "18"}, by="Anna")
        answer(opened, 0, "17", how="accepted")
        answer(opened, 1, "19", how="corrected")
        answer(opened, 2, "20")
        rows = table()
        assert [list(row.values())[:7] for row in rows] == [
            ["photos/a.png", "What?", "17", "accepted", "17", "0.9", "Anna"],
            ["photos/b.jpg", "What?", "19", "corrected", "18", "", "Anna"],
            ["photos/more/c.png", "What?", "20", "typed", "", "", "Anna"],
        ]
        assert all(row["at"].endswith("+00:00") for row in rows)

    def test_what_predict_wrote_beside_the_pictures_folder_is_suggested(self, photos, begin):
        """Its names start from the folder of the pictures, those of labels.csv from its own."""
        Path("answers.csv").write_text("file,answer,confidence\na.png,17,0.9\nmore/c.png,0,\n", encoding="utf-8")
        assert begin("photos/", "What?", suggest="answers.csv").suggested == {0: ("17", 0.9), 2: ("0", None)}
        assert begin("photos/", "What?", suggest={"b.jpg": 18}).suggested == {1: ("18", None)}
        lines = [{"file": "a.png", "answer": 0, "confidence": 0.9}, {"file": "b.jpg", "answer": ""}]
        Path("answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
        assert begin("photos/", "What?", suggest="answers.jsonl").suggested == {0: ("0", 0.9)}
        with pytest.raises(DataError, match=r"none of the pictures, but .*z\.png; expected .*photos/a\.png"):
            begin("photos/", "What?", suggest={"z.png": "18"})

    def test_numbers_are_choices_and_answers_too(self, photos, begin):
        opened = begin("photos/", "What?", choices=range(3), suggest={"photos/a.png": 2})
        assert opened.form["choices"] == ["0", "1", "2"] and opened._suggestion(0)["suggestion"] == ["2"]
        answer(opened, 0, "2")
        assert opened.rows[0]["values"] == ["2"] and table()[0]["answer"] == "2"

    def test_an_answer_taken_back_is_gone_and_an_unusable_picture_is_not_in_it(self, photos, begin):
        opened = begin("photos/", "What?")
        answer(opened, 0, "17")
        answer(opened, 1, how="unusable")
        answer(opened, 0, how="undone")
        answer(opened, 2, "20")
        assert [row["file"] for row in table()] == ["photos/more/c.png"]
        assert opened._line()["text/plain"] == "1 of 3 labelled, 1 unusable"

    def test_columns_become_json(self, photos, begin):
        opened = begin("photos/", "Which car?", columns=["make", "colour"])
        answer(opened, 0, "Audi", "")
        assert table()[0]["answer"] == '{"make": "Audi", "colour": null}'
        assert begin("photos/", "Which car?", columns=["make", "colour"]).rows[0]["values"] == ["Audi", ""]

    def test_boxes_become_our_notation_and_are_found_again(self, photos, begin):
        opened = begin("photos/", "Where?", boxes=True)
        drawn = [["cat", 10, 20, 300, 400], ["big dog", 0, 0, 1000, 1000]]
        answer(opened, 0, *drawn)
        text = "<ref>cat</ref><box>[[10, 20, 300, 400]]</box><ref>big dog</ref><box>[[0, 0, 1000, 1000]]</box>"
        assert table()[0]["answer"] == text
        assert begin("photos/", "Where?", boxes=True).rows[0]["values"] == drawn
        assert ivl.open_data("labels.csv")[0].turns[-1].text == text

    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("<ref>cat</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", [["cat", 1, 2, 3, 4], ["cat", 5, 6, 7, 8]]),
            ("<ref>cat</ref><box>[[-5, 2, 3.4, 1004]]</box>", [["cat", 0, 2, 3, 1000]]),
            ("none", ["none"]),
        ],
    )
    def test_boxes_of_a_model_are_read(self, text, values):
        assert answer_values(text, boxes=True) == values

    def test_a_word_cannot_close_its_own_mark(self):
        assert answer_text([["a</ref>", 1, 2, 3, 4]]) == "<ref>a/ref</ref><box>[[1, 2, 3, 4]]</box>"
        for word, kept in (("<5 mm", "<5 mm"), ("a -> b", "a -> b"), ("<<ref>>", "ref"), ("a</ref", "a</ref")):
            assert answer_values(answer_text([[word, 1, 2, 3, 4]]), boxes=True) == [[kept, 1, 2, 3, 4]]

    def test_a_reply_that_is_no_json_stands_in_the_first_column(self):
        assert answer_values("an Audi", ["make", "colour"]) == ["an Audi", ""]


class TestGoingOn:
    def test_it_begins_after_the_last_one(self, photos, begin):
        opened = begin("photos/", "What?")
        answer(opened, 0, "17")
        answer(opened, 1, how="skipped")
        again = begin("photos/", "What?")
        assert again.at == 2 and [row["how"] for row in again.rows] == ["typed", None, None]

    def test_fewer_pictures_lose_nothing_of_the_others(self, photos, begin):
        answer(begin("photos/", "What?"), 0, "17")
        answer(begin(["photos/b.jpg"], "What?"), 0, "18")
        answer(begin(["photos/b.jpg"], "Which colour?"), 0, "grey")
        assert [(row["question"], row["answer"]) for row in table()] == [
            ("What?", "17"),
            ("What?", "18"),
            ("Which colour?", "grey"),
        ]
        assert [row["how"] for row in begin("photos/", "What?").rows] == ["typed", "typed", None]

    def test_a_line_that_a_kill_cut_off_is_left_out(self, photos, begin):
        answer(begin("photos/", "What?"), 0, "17")
        with open("labels.csv.journal.jsonl", "a") as file:
            file.write('{"file": "photos/b.j')
        opened = begin("photos/", "What?")
        answer(opened, 1, "18")
        assert [row["answer"] for row in table()] == ["17", "18"]
        assert [row["how"] for row in begin("photos/", "What?").rows] == ["typed", "typed", None]

    def test_the_journal_alone_brings_the_table_back(self, photos, begin):
        opened = begin("photos/", "What?")
        answer(opened, 0, "17")
        answer(opened, 0, "18")
        before = opened.labels.path.read_bytes()
        opened.labels.path.unlink()
        answer(begin("photos/", "What?"), 1, "19")
        assert opened.labels.path.read_bytes().startswith(before)

    def test_a_message_that_comes_twice_is_kept_once(self, photos, begin):
        opened = begin("photos/", "What?")
        answer(opened, 0, "17", id="one")
        answer(begin("photos/", "What?"), 0, "17", id="one")
        with open("labels.csv.journal.jsonl") as file:
            assert len(file.readlines()) == 1

    def test_an_answer_kept_in_the_browser_for_another_picture_is_saved_too(self, photos, begin):
        opened = begin(["photos/b.jpg"], "What?")
        said = {"file": "photos/a.png", "question": "What?", "values": ["17"], "how": "typed"}
        opened.receive({"do": "answer", "id": "x", **said})
        assert told(opened, "saved") == [{"saved": "x", "number": None}] and table()[0]["answer"] == "17"

    def test_a_second_cell_closes_the_first(self, photos, begin):
        first = begin("photos/", "What?")
        second = begin("photos/", "What?")
        assert first.closed.is_set() and "opened again" in told(first, "stop")[0]["stop"]
        answer(first, 0, "17", id="late")
        answer(second, 1, "18")
        assert told(first, "saved") == [] and [row["answer"] for row in table()] == ["18"]

    def test_a_picture_that_is_listed_twice_is_labelled_once(self, photos, begin):
        assert len(begin(["photos/a.png", "photos/a.png"], "What?").rows) == 1


class TestChangedOnDisk:
    def test_it_is_refused_and_not_overwritten(self, photos, begin):
        opened = begin("photos/", "What?")
        answer(opened, 0, "17")
        edited = opened.labels.path.read_text().replace(",17,", ",71,")
        opened.labels.path.write_text(edited)
        answer(opened, 1, "18")
        assert "another program changed it" in told(opened, "stop")[0]["stop"]
        assert opened.labels.path.read_text() == edited
        again = begin("photos/", "What?")
        assert [row["values"] for row in again.rows] == [["71"], ["18"], None]
        answer(again, 2, "19")
        assert [row["answer"] for row in table()] == ["71", "18", "19"]

    def test_an_edit_as_excel_saves_it_is_taken(self, photos, begin):
        answer(begin("photos/", "Quoi ?"), 0, "thé")
        lines = Path("labels.csv").read_text(encoding="utf-8").replace("thé", "café").replace(",", ";")
        Path("labels.csv").write_text(lines, encoding="cp1252")
        assert begin("photos/", "Quoi ?").rows[0]["values"] == ["café"]

    def test_a_correction_that_a_kill_kept_from_the_table_is_not_undone(self, photos, begin):
        opened = begin("photos/", "What?")
        answer(opened, 0, "17")
        before = opened.labels.path.read_bytes()
        answer(opened, 0, "18")
        opened.labels.path.write_bytes(before)
        assert begin("photos/", "What?").rows[0]["values"] == ["18"]

    def test_a_table_without_its_journal_keeps_who_said_what(self, photos, begin):
        answer(begin("photos/", "What?", suggest={"photos/a.png": "17"}, by="Anna"), 0, "17", how="accepted")
        before = table()
        Path("labels.csv.journal.jsonl").unlink()
        answer(begin("photos/", "What?", by="Ben"), 1, "18")
        assert table()[0] == before[0] and table()[1]["by"] == "Ben"

    def test_a_table_of_another_program_is_left_alone(self, photos, begin):
        for text, said in [
            ("image,label\na.png,1\n", "no column 'file'"),
            ("file,question,answer,remark\nphotos/a.png,What?,1,good\n", "a column 'remark'"),
        ]:
            Path("labels.csv").write_text(text)
            with pytest.raises(DataError, match=said):
                begin("photos/", "What?")
            assert Path("labels.csv").read_text() == text


class TestSuggestions:
    def test_a_model_is_asked_in_the_background_and_a_reply_is_sent_when_it_comes(self, photos, begin):
        asked = []

        class Model:
            def chat(self, question, images):
                asked.append(images)
                return "17"

        opened = begin("photos/", "What?", vlm=Model())
        opened.rows[1]["how"] = "typed"
        opened.at = 2
        thread = threading.Thread(target=opened._ask)
        thread.start()
        end = time.monotonic() + 30
        while len(told(opened, "suggest")) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        opened.close()
        thread.join(5)
        assert [message["suggest"] for message in told(opened, "suggest")] == [2, 0]
        assert told(opened, "suggest")[0]["suggestion"] == ["17"]
        assert [one.rsplit("/", 1)[1] for one in asked] == ["c.png", "a.png"]

    def test_a_model_of_ours_says_how_sure_it_is_as_predict_does(self, photos, begin):
        nano = ivl.load("nano")
        opened = begin("photos/", "What?", vlm=nano)
        thread = threading.Thread(target=opened._ask)
        thread.start()
        while len(opened.suggested) < 3 and thread.is_alive():
            time.sleep(0.01)
        opened.close()
        thread.join()
        for number, row in enumerate(ivl.predict(nano, "photos/", question="What?", progress=False).rows):
            assert 0 < row.confidence < 1
            assert opened.suggested[number] == (row.reply, pytest.approx(row.confidence, rel=1e-4))

    def test_a_table_of_answers_gives_them(self, photos, begin):
        Path("answers.csv").write_text("file,answer,confidence\nphotos/b.jpg,18,0.25\n")
        opened = begin("photos/", "What?", suggest="answers.csv")
        assert opened._suggestion(1) == {"suggestion": ["18"], "confidence": 0.25}
        assert opened._suggestion(0) == {"suggestion": None}

    def test_a_reply_is_taken_for_the_choice_that_it_names(self, photos, begin):
        opened = begin("photos/", "What?", choices=["cat", "dog"], suggest={"photos/a.png": "Dog."})
        assert opened._suggestion(0)["suggestion"] == ["dog"]

    def test_of_a_blind_row_it_is_hidden_until_the_answer_is_saved(self, photos, begin):
        opened = begin([("photos/a.png", "What?", "17", 0.9, True), Item("photos/b.jpg", "What?", "18")])
        message, _ = opened._picture("picture", 0)
        assert message == {"picture": 0, "suggestion": None}
        assert opened._picture("picture", 1)[0] == {"picture": 1, "suggestion": ["18"], "confidence": None}
        answer(opened, 0, "17")
        assert told(opened, "saved")[0]["reply"] == "17" and table()[0]["how"] == "typed"
        answer(opened, 1, "18")
        assert told(opened, "saved")[1]["reply"] is None
        assert opened._picture("picture", 0)[0]["suggestion"] is None  # a row taken back is typed again

    def test_rows_that_the_kept_split_tests_are_blind(self, photos, begin):
        suggest = {f"photos/{name}": "1" for name in ("a.png", "b.jpg", "more/c.png")}
        opened = begin("photos/", "What?", suggest=suggest)
        for number in range(3):
            answer(opened, number, str(number))
        parts = ivl.open_data("labels.csv").split(train=0.34, validation=0.33, test=0.33)
        (tested,) = [str(record.images[0]).rsplit("/", 1)[1] for record in parts.test]
        again = begin("photos/", "Which colour?", suggest=suggest)
        hidden = [again.files[number] for number in range(3) if again._suggestion(number)["suggestion"] is None]
        assert [name.rsplit("/", 1)[1] for name in hidden] == [tested]


class TestPictures:
    def test_twelve_megapixels_are_sent_small_and_whole_when_zoomed_into(self, photos, begin):
        Image.new("RGB", (4000, 3000), "teal").save(photos / "b.jpg")
        opened = begin("photos/", "What?")
        assert opened._picture("picture", 1)[1].size == (1600, 1200)
        assert opened._picture("original", 1)[1].size == (4000, 3000)

    def test_tiles_are_drawn_as_the_model_cuts_them(self, photos, begin):
        opened = begin("photos/", "What?", vlm=SimpleNamespace(processor=ivl.load_processor("nano")))
        assert opened.widget.setup["tiles"]
        assert opened._picture("tiles", 0)[1].width > 600

    def test_a_broken_one_is_named_and_the_next_ones_come(self, photos, begin):
        (photos / "a.png").write_bytes(b"no picture")
        opened = begin("photos/", "What?")
        for number in (0, 1):
            opened.receive({"do": "want", "at": 0, "numbers": [number]})
        opened.wanted.put(None)
        opened._send_wanted()
        (first, _), (second, (jpeg,)) = opened.sent
        assert first["picture"] == 0 and "photos/a.png" in first["error"]
        assert second["picture"] == 1 and jpeg[:2] == b"\xff\xd8"


def test_a_page_that_was_closed_gets_no_heartbeats_until_it_speaks_again(photos, begin, monkeypatch):
    opened = begin("photos/", "What?")
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.001)
    opened.heard -= module.PATIENCE_SECONDS
    threading.Thread(target=opened._beat, daemon=True).start()
    time.sleep(0.05)
    assert told(opened, "beat") == []
    opened.receive({"do": "want", "at": 0, "numbers": []})
    end = time.monotonic() + 30
    while not told(opened, "beat") and time.monotonic() < end:
        time.sleep(0.001)
    assert told(opened, "beat")


class TestRefused:
    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ({"pictures": []}, "no picture"),
            ({"question": None}, "no question"),
            ({"columns": ["make"], "boxes": True}, "columns beside choices or boxes"),
            ({"choices": "yes, no"}, r"choices='yes, no'; expected a list; write choices=\['yes', 'no'\]"),
            ({"columns": "make"}, r"write columns=\['make'\]"),
            ({"to": "labels.xlsx"}, "ends in .csv"),
            ({"to": "elsewhere/labels.csv"}, "not below .*elsewhere.*to='.*labels.csv'"),
        ],
    )
    def test_what_cannot_work(self, photos, begin, how, said):
        with pytest.raises(DataError, match=said):
            begin(**{"pictures": "photos/", "question": "What?"} | how)

    def test_without_anywidget_the_command_is_named(self, photos, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "anywidget", None)
        with pytest.raises(IvlkitError, match="pip install anywidget"):
            ivl.label("photos/", "What?")

    def test_a_broken_journal_names_its_line(self, photos, begin):
        answer(begin("photos/", "What?"), 0, "17")
        with open("labels.csv.journal.jsonl", "a") as file:
            file.write("[]\n")
        with pytest.raises(DataError, match=r"journal.jsonl:2: broken"):
            Labels("labels.csv")


def test_the_saved_notebook_keeps_a_line_and_no_picture(photos, begin, monkeypatch):
    opened, shown = begin("photos/", "What?", to="<b>.csv"), []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    monkeypatch.setattr(opened, "_beat", lambda: None)
    opened.wanted.put(None)
    opened._ipython_display_()
    assert "0 of 3 labelled: &lt;b&gt;.csv" in shown[1]["text/html"]
    assert "data:image" not in json.dumps(shown)


def test_a_question_with_a_mark_or_space_around_it_is_the_same_one_when_opened_again(photos, begin):
    asked = "<image>\nWhich number?\n"
    answer(begin(photos, asked), 0, "17")
    Labels("labels.csv").write()
    again = begin(photos, asked)
    assert [row["how"] for row in again.rows] == ["typed", None, None]
    answer(again, 1, "18")
    assert [(row["question"], row["answer"]) for row in table()] == [("Which number?", "17"), ("Which number?", "18")]


def test_a_journal_of_questions_with_space_around_them_gives_each_row_once(photos):
    Labels("labels.csv").add("photos/a.png", "Which number? ", id="1", how="typed", answer="17")
    assert list(Labels("labels.csv").state) == [("photos/a.png", "Which number?")]


def test_choices_may_differ_in_their_case_only(photos, begin):
    opened = begin(photos, "Grade?", choices=["A", "a", "b "], suggest={photos / "a.png": "a", photos / "b.jpg": "B."})
    assert [opened._suggestion(number)["suggestion"] for number in (0, 1)] == [["a"], ["b"]]
    answer(opened, 0, "a")
    assert begin(photos, "Grade?", choices=["A", "a", "b "]).rows[0]["values"] == ["a"]


def test_choices_and_suggestions_may_be_numbers(photos, begin):
    opened = begin(photos, "Q", choices=[0, 1], suggest={photos / "a.png": 0})
    assert opened.form["choices"] == ["0", "1"] and opened._suggestion(0)["suggestion"] == ["0"]
    answer(opened, 0, opened.form["choices"][1])
    assert table()[0]["answer"] == "1"


def test_suggestions_may_be_named_from_the_folder_of_the_pictures(photos, begin, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "answers.csv").write_text("file,answer,confidence\nb.jpg,18,0.5\n")
    opened = begin(photos, "Q", suggest="runs/answers.csv")
    assert opened._suggestion(1) == {"suggestion": ["18"], "confidence": 0.5}


def test_suggestions_for_none_of_the_pictures_are_refused(photos):
    with pytest.raises(DataError, match="none of the pictures, but .*gone.png; expected"):
        ivl.label(photos, "Q", suggest={"gone.png": "18"})


def test_an_earlier_answer_that_is_written_back_by_hand_counts(photos):
    labels, row = Labels("labels.csv"), ("photos/a.png", "Q")
    labels.add(*row, id="1", how="typed", answer="cow", at="2026-01-01T00:00:01+00:00")
    stale = Path("labels.csv").read_text()
    labels.add(*row, id="2", how="corrected", answer="dog", at="2026-01-01T00:00:02+00:00")
    newest = Path("labels.csv").read_text()
    Path("labels.csv").write_text(stale)  # as after a kill between journal and table
    assert Labels("labels.csv").state[row]["answer"] == "dog"
    Path("labels.csv").write_text(newest.replace(",dog,", ",cow,"))
    assert Labels("labels.csv").state[row]["answer"] == "cow"
