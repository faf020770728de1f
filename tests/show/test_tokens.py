"""The microscope reads batches back: padded ones of the real collate, packed ones made by hand."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ivlkit.data.collate import collate
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import encode
from ivlkit.data.rows.records import Record, Turn
from ivlkit.errors import DataError
from ivlkit.show.dataset import gallery_live
from ivlkit.show.tokens import batch_html, read_batch, tokens_html, tokens_live

HOSTILE = "<script>alert(1)</script></div>\u202eevil\u2066"


def make_record(answer="Red.", *, images=(), where="train.jsonl:1"):
    question = "<image>\nWhat colour?" if images else "What colour?"
    return Record(id=0, turns=(Turn("user", question), Turn("assistant", answer)), images=images, where=where)


def body(html):
    return re.sub(r"<style>.*?</style>|<img [^>]*>", "", html, flags=re.S)


def pack(examples):
    """As a packed collate gives it, written out: one row, restarting samples, no mask."""
    lengths = [len(example) for example in examples]
    batch = {
        "input_ids": torch.from_numpy(np.concatenate([one.input_ids for one in examples]))[None],
        "labels": torch.from_numpy(np.concatenate([one.labels for one in examples]))[None],
        "tiles": torch.from_numpy(np.concatenate([one.tiles for one in examples])),
    }
    return batch | {"cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)}


class TestKinds:
    def test_only_the_answer_and_its_closing_token_are_trained(self, processor):
        batch = collate([encode(make_record("Red."), processor)], pad_token_id=2)
        (sample,) = read_batch(batch, processor)
        trained = processor.tokenizer.convert_ids_to_tokens(sample.input_ids[sample.kinds == "trained"].tolist())
        assert "".join(trained) == "Red.<|im_end|>"

    def test_a_picture_of_three_tiles_and_its_thumbnail_are_64_image_tokens(self, processor):
        record = make_record(images=(Image.new("RGB", (336, 112), "red"),))
        (sample,) = read_batch(collate([encode(record, processor)], pad_token_id=2), processor)
        assert sample.count("image") == 64 and len(sample.tiles) == 4
        assert sample.count("special") == 8  # <s>, 2 of the system, 2 of the question, 1 of the answer, <img>, </img>

    def test_counts_of_a_sample_sum_to_its_tokens(self, processor):
        record = make_record(images=(Image.new("RGB", (336, 112), "red"),))
        example = encode(record, processor)
        (sample,) = read_batch(collate([example], pad_token_id=2), processor)
        assert sum(map(sample.count, ("trained", "masked", "image", "special", "padding"))) == len(example)

    def test_padding_is_told_from_the_mask_even_where_its_token_is_a_real_one(self, processor):
        short, long = encode(make_record("A"), processor), encode(make_record("A long answer."), processor)
        first, second = read_batch(collate([short, long], pad_token_id=int(short.input_ids[0])), processor)
        assert first.count("padding") == len(long) - len(short) and second.count("padding") == 0


class TestPacked:
    @pytest.fixture
    def examples(self, processor):
        images = [(Image.new("RGB", size, "red"),) for size in ((112, 112), (224, 112))]
        return [encode(make_record(str(n), images=image), processor) for n, image in enumerate(images)]

    def test_samples_and_their_tiles_come_apart_at_the_borders(self, processor, examples):
        samples = read_batch(pack(examples), processor)
        assert [sample.start for sample in samples] == [0, len(examples[0])]
        for sample, example in zip(samples, examples, strict=True):
            assert np.array_equal(sample.input_ids, example.input_ids) and np.array_equal(sample.tiles, example.tiles)

    def test_the_neighbours_are_listed_with_their_positions(self, processor, examples):
        first, second = map(len, examples)
        html = batch_html(pack(examples), processor, records=[make_record(where="a:1"), make_record(where="b:2")])
        assert f"0 to {first - 1}" in html and f"{first} to {first + second - 1}" in html
        assert "a:1" in html and "b:2" in html and "Packed: one sequence" in html


class TestHtml:
    def test_every_token_stands_there_with_its_id(self, processor):
        record = make_record("Blue")
        example = encode(record, processor)
        found = re.findall(r"<sub>(\d+)</sub>", tokens_html(record, processor))
        assert list(map(int, found)) == example.input_ids.tolist()

    def test_one_chip_a_tile_with_its_number_of_tokens(self, processor):
        html = tokens_html(make_record(images=(Image.new("RGB", (224, 112), "red"),)), processor)
        assert re.findall(r"tile (\d+): (\d+) ×", html) == [("1", "16"), ("2", "16"), ("3", "16")]
        assert 'alt="tile 3"' in html

    def test_a_picture_that_was_cut_is_marked(self, processor):
        example = encode(make_record(images=(Image.new("RGB", (224, 112), "red"),)), processor)
        end = int(np.flatnonzero(example.input_ids == processor.token_id("<IMG_CONTEXT>"))[37]) + 1
        cut = replace(example, input_ids=example.input_ids[:end], labels=example.labels[:end])
        html = batch_html(collate([cut], pad_token_id=2), processor)
        assert "cut: 6 of 16" in html and html.count('class="token image cut"') == 1

    def test_kinds_are_told_without_colours_too(self, processor):
        html = tokens_html(make_record("7"), processor)
        assert "<b>7</b>" in html and "<b>&lt;|im_end|&gt;</b>" in html
        assert "<code>&lt;|im_start|&gt;</code>" in html

    def test_hostile_text_shows_as_text(self, processor):
        record = replace(make_record(HOSTILE, where=HOSTILE), turns=(Turn("user", HOSTILE), Turn("assistant", HOSTILE)))
        html = body(tokens_html(record, processor))
        assert "<script" not in html and "\u202e" not in html and "\u2066" not in html
        assert html.count("<div") == html.count("</div>")

    def test_a_megabyte_of_answer_stays_a_page_one_can_open(self, processor):
        html = tokens_html(make_record("word " * 200_000), processor)
        assert len(html) < 200_000 and "more trained tokens" in html


class TestPicker:
    @pytest.fixture
    def data(self, write_rows, turns):
        return open_data(write_rows([{"conversations": turns("Q", f"answer {number}")} for number in range(3)]))

    def test_picking_a_row_shows_that_row(self, data, processor):
        pytest.importorskip("ipywidgets")
        live = tokens_live(data, processor)
        assert "train.jsonl:1" in live.to_html()
        live.controls[0].value = 2
        assert "train.jsonl:3" in live.to_html() and "train.jsonl:1" not in live.to_html()

    def test_it_begins_at_the_row_that_data_gives_for_a_number(self, data, processor):
        assert "train.jsonl:3" in tokens_live(data, processor, row=-1).to_html()
        assert "train.jsonl:2" in gallery_live(data, rows=1, start=-2).to_html()
        with pytest.raises(IndexError, match="row 3 of 3"):
            tokens_live(data, processor, row=3)
        with pytest.raises(IndexError, match="row 3 of 3"):
            gallery_live(data, start=3)

    def test_an_unusable_row_is_named_in_its_place(self, write_rows, turns, processor):
        row = {"image": "gone.png", "conversations": turns("Q", "A")}
        live = tokens_live(open_data(write_rows([row])), processor)
        assert "train.jsonl:1" in live.to_html() and "does not exist" in live.to_html()

    def test_what_a_notebook_keeps_is_plain_html(self, data, processor, monkeypatch):
        shown = []
        monkeypatch.setattr("IPython.display.display", lambda value, **_: shown.append(value))
        data.show_tokens(processor)._ipython_display_()
        assert "VBox" not in str(shown[:-1]) and "<b>" in shown[-1]["text/html"]


def test_a_row_that_is_too_long_says_so(processor):
    with pytest.raises(DataError, match="expected at most 8"):
        tokens_html(make_record(), processor, max_length=8)


def test_pieces_that_make_no_letter_are_still_shown(processor):
    """A character the vocabulary lacks is three byte pieces."""
    html = tokens_html(make_record("日\n7"), processor)
    assert "&lt;0xE6&gt;" in html and "↵" in html
