"""A row written by hand: what is shown of it is what a run would make of it."""

import json
import re

import pytest
import torch
from PIL import Image

import ivlkit as ivl
from ivlkit.data.collate import collate
from ivlkit.errors import DataError
from ivlkit.nano.digits import write_digit_strips
from ivlkit.show.tokens import read_batch

HOSTILE = "<script>alert(1)</script></div>\u202eevil"


@pytest.fixture
def picture(tmp_path, monkeypatch):
    """A picture below the working folder."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (224, 112), "teal").save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    return "photos/a.png"


@pytest.fixture(scope="module")
def nano():
    return ivl.load("nano")


def body(html):
    return re.sub(r"<style>.*?</style>", "", html, flags=re.S)


def button(opened, name):
    return next(one for one in opened.live.controls if one.description.startswith(name))


class TestRow:
    def test_the_tokens_are_those_of_the_encoder_and_the_collator(self, picture):
        opened = ivl.playground("nano", pictures=picture, question="What?", answer="A cat.")
        opened.append()
        processor = ivl.load_processor("nano")
        (record,) = ivl.read_records("mine.jsonl")
        example = ivl.encode(record, processor)
        (sample,) = read_batch(collate([example], pad_token_id=processor.tokenizer.pad_token_id), processor)
        html = body(opened.to_html())
        assert f"<b>{len(example):,} tokens</b>" in html and f"{len(example.tiles)} tiles" in html
        assert f"{sample.count('trained'):,} trained" in html and sample.count("trained") == example.num_supervised

    @pytest.mark.parametrize("to", ["mine.csv", "mine.json", "mine.XLSX"])
    def test_a_file_of_other_rows_is_refused(self, to):
        with pytest.raises(DataError, match=r"playground: mine.*; expected a name that ends in .jsonl; write to="):
            ivl.playground("nano", to)

    def test_a_processor_alone_is_not_asked(self):
        with pytest.raises(DataError, match=r"no weights; expected a loaded model; give ivl.load"):
            ivl.playground("nano").ask()

    def test_the_doctors_findings_stand_there_with_their_fix(self, picture):
        opened = ivl.playground("nano", pictures=picture, question="What? <image> <image>")
        html = body(opened.to_html())
        assert "add or remove placeholders" in html and "1 picture" in html
        opened.question = "What?"
        assert "The doctor finds nothing." in opened.to_html()
        opened.answer = "<box>[[20, 0, 10, 10]]</box>"
        assert [problem.code for problem in opened.problems()] == ["box_order"]

    def test_without_a_picture_it_is_text(self, picture):
        opened = ivl.playground("nano", question="2 + 2?", answer="4")
        assert json.loads(opened.line) == {
            "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
        }
        assert "0 tiles" in opened.to_html()

    def test_several_pictures_have_a_place_each(self, picture):
        opened = ivl.playground("nano", pictures=[picture, picture])
        row = json.loads(opened.line)
        assert row["image"] == [picture, picture] and row["conversations"][0]["value"].count("<image>") == 2

    def test_a_missing_picture_is_named_in_its_place(self, picture):
        html = body(ivl.playground("nano", pictures="photos/b.png").to_html())
        assert "does not exist" in html or "no such file" in html

    def test_hostile_text_stays_text(self, picture):
        opened = ivl.playground("nano", pictures=picture, question=HOSTILE, answer=HOSTILE)
        html = body(opened.to_html())
        assert "<script" not in html and "\u202e" not in html and "&lt;script&gt;" in html


class TestAppend:
    def test_the_file_opens_as_data(self, picture):
        opened = ivl.playground("nano", pictures=picture, question="What?", answer="A cat.")
        opened.append()
        opened.answer = "A dog."
        opened.append()
        assert [record.answer for record in ivl.open_data("mine.jsonl")] == ["A cat.", "A dog."]
        assert ivl.check("mine.jsonl", "nano").ok

    def test_a_last_line_without_an_end_gets_one(self, picture, tmp_path):
        opened = ivl.playground("nano", "rows/mine.jsonl", question="2 + 2?", answer="4")
        opened.append()
        file = tmp_path / "rows" / "mine.jsonl"
        file.write_bytes(file.read_bytes().rstrip(b"\n"))
        opened.answer = "four"
        opened.append()
        assert len(file.read_text().splitlines()) == 2

    def test_a_row_that_a_run_refuses_is_not_added(self, picture, tmp_path):
        opened = ivl.playground("nano", pictures=picture, question="<image><image>")
        with pytest.raises(DataError, match="not appended: .*placeholder"):
            opened.append()
        assert not (tmp_path / "mine.jsonl").exists()

    def test_a_row_is_added_once(self, picture):
        opened = ivl.playground("nano", pictures=picture)
        opened.append()
        with pytest.raises(DataError, match="there already"):
            opened.append()


class TestModel:
    def test_a_step_teaches_a_copy_and_leaves_every_bit_of_the_model(self, nano, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        record = ivl.open_data(write_digit_strips("strips", rows=4, digits=(3, 3)))[0]
        before = {name: value.clone() for name, value in nano.model.state_dict().items()}
        trained = [parameter.requires_grad for parameter in nano.model.parameters()]
        opened = ivl.playground(nano, pictures=record.images[0], question="What number is written here?", answer="801")
        for _ in range(3):
            opened.teach()
        losses = [float(text.rpartition(" ")[2]) for who, text in opened.said if who.startswith("step")]
        assert losses[2] < losses[0] and opened.said[-1][0] == "after step 3"
        after = nano.model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert trained == [parameter.requires_grad for parameter in nano.model.parameters()]
        assert not nano.model.training

    def test_another_row_begins_with_a_fresh_copy_and_the_model_is_asked(self, nano, picture):
        opened = ivl.playground(nano, pictures=picture, question="What?", answer="A cat.")
        opened.teach()
        opened.answer = "A dog."
        opened.ask()
        assert opened.said[-1] == ("nano", nano.chat("What?", images=picture).text)
        opened.teach()
        assert opened.said[-1][0] == "after step 1"

    def test_a_row_that_a_run_refuses_is_not_taught(self, nano, picture):
        opened = ivl.playground(nano, pictures=picture, question="<image><image>", answer="A cat.")
        button(opened, "teach").click()
        assert opened.said[-1][0] == "not done" and "placeholder" in opened.said[-1][1]

    def test_a_processor_has_nothing_to_ask(self, picture):
        names = [one.description for one in ivl.playground(ivl.load_processor("nano")).live.controls]
        assert "append" in names and "ask" not in names


class TestControls:
    @pytest.fixture(autouse=True)
    def ipywidgets(self):
        pytest.importorskip("ipywidgets")

    def test_what_is_typed_is_shown_and_a_refusal_is_said(self, nano, picture):
        opened = ivl.playground(nano, pictures=picture)
        _, _, question, answer, *_ = opened.live.controls
        assert opened.pictures == [picture]
        question.value, answer.value = "What? <image> <image>", "A <b>bird</b>."
        assert "A &lt;b&gt;bird" in opened.to_html()
        button(opened, "append").click()
        assert "not appended" in body(opened.to_html())
        question.value = "What?"
        button(opened, "append").click()
        assert "mine.jsonl" in body(opened.to_html()) and "not appended" not in body(opened.to_html())
        button(opened, "ask").click()
        assert opened.said[-1][0] == "nano"

    def test_an_uploaded_picture_is_kept_beside_the_file(self, picture, tmp_path):
        opened = ivl.playground("nano", "rows/mine.jsonl")
        content = (tmp_path / picture).read_bytes()
        opened._keep([{"name": "../evil name.PNG", "content": memoryview(content)}], opened.live.controls[0])
        opened.append()
        (record,) = ivl.read_records("rows/mine.jsonl", "rows")
        assert record.images[0].read_bytes() == content and record.images[0].parent.name == "mine_pictures"


def test_without_ipywidgets_it_is_its_static_form(picture, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    opened = ivl.playground("nano", pictures=picture)
    assert opened.live.controls == () and "tokens" in opened.to_html()
