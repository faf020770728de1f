"""A record → exactly the tokens of the model, exactly the labels of its answers, its tiles."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from ivlkit.data.encode import IGNORE_INDEX, encode, encode_text
from ivlkit.data.processor import FastTokenizer, light_processor
from ivlkit.data.rows.records import Record, Turn
from ivlkit.errors import DataError
from ivlkit.models.processor import load_processor

# Sizes whose grid at a budget of 12 gives this many tiles.
SIZES = {1: (448, 448), 3: (896, 448), 5: (640, 640), 7: (1344, 896), 13: (640, 480)}


def record(*texts, images=(), **fields):
    turns = tuple(Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(texts))
    return Record(id=0, turns=turns, images=images, where="train.jsonl:17", **fields)


def supervised(example, tokenizer):
    return tokenizer.decode(example.input_ids[example.labels != IGNORE_INDEX])


def run_lengths(values):
    """[5, 5, 7] → [[5, 2], [7, 1]]."""
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return [
        [int(values[start]), int(end - start)]
        for start, end in zip(starts, np.r_[starts[1:], len(values)], strict=True)
    ]


def test_a_text_row_has_no_tiles(processor):
    example = encode(record("Hi", "Yes"), processor)
    assert example.tiles.shape == (0, 112, 112, 3)
    assert example.tiles.dtype == np.uint8
    assert example.input_ids.dtype == example.labels.dtype == np.int64
    assert processor.tokenizer.decode(example.input_ids) == (
        "<s><|im_start|>system\nYou are nano, a small assistant that reads pictures.<|im_end|>"
        "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\nYes<|im_end|>"
    )
    assert supervised(example, processor.tokenizer) == "Yes<|im_end|>"


def test_labels_are_the_ids_of_the_answers_and_are_not_shifted(processor):
    example = encode(record("Hi", "Yes", "Why?", "So"), processor)
    places = np.flatnonzero(example.labels != IGNORE_INDEX)
    assert np.array_equal(example.labels[places], example.input_ids[places])
    assert supervised(example, processor.tokenizer) == "Yes<|im_end|>So<|im_end|>"
    assert example.num_supervised == len(places)


@pytest.mark.parametrize("answer", ["", "407", "🍠", "a🍠\u200d鳔b", "浦语 🕡", "x\n\n y\tz", "é́", "<|im_end"])
def test_every_byte_of_an_answer_is_supervised(processor, answer):
    """Characters without a piece become bytes; each of these tokens is one to learn."""
    example = encode(record("Q", answer), processor)
    expected = processor.tokenizer(answer + "<|im_end|>")["input_ids"][1:]
    assert example.input_ids[example.labels != IGNORE_INDEX].tolist() == expected


def test_a_picture_is_sixteen_tokens_a_tile(processor, draw_picture):
    example = encode(record("<image>\nQ", "A", images=(draw_picture(224, 112),)), processor)
    assert example.num_tiles == (3,)
    assert example.tiles.shape == (3, 112, 112, 3)
    context = processor.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert (example.input_ids == context).sum() == 48
    assert (example.labels == context).sum() == 0


def test_several_pictures_share_the_budget_and_keep_their_order(processor, draw_picture):
    pictures = (draw_picture(640, 480), draw_picture(112, 112, seed=3))
    example = encode(record("<image> <image>", "A", images=pictures), processor)
    assert example.num_tiles == (7, 1)  # 12 // 2 = 6: 4:3 gets 3 × 2 and the thumbnail
    assert np.array_equal(example.tiles[-1], np.asarray(pictures[1]))


def test_a_data_set_has_its_own_budget(processor, draw_picture):
    example = encode(record("<image>", "A", images=(draw_picture(640, 480),), max_tiles=4), processor)
    assert example.num_tiles == (5,)  # 2 × 2 is as near to 4:3 as 1 × 1, and the picture is large enough


def test_tiles_come_from_a_file_as_from_memory(processor, draw_picture, tmp_path):
    draw_picture(300, 200).save(tmp_path / "a.png")
    from_file = encode(record("<image>", "A", images=(tmp_path / "a.png",)), processor)
    from_memory = encode(record("<image>", "A", images=(draw_picture(300, 200),)), processor)
    assert np.array_equal(from_file.tiles, from_memory.tiles)


def test_outer_whitespace_of_answers_is_stripped_and_said(processor):
    example = encode(record("Q", " A \n"), processor)
    assert supervised(example, processor.tokenizer) == "A<|im_end|>"
    assert example.notes == ("outer whitespace of 1 answers stripped",)


def test_a_row_that_just_fits_keeps_its_tiles(processor, draw_picture):
    row = record("<image>\nQ", "A", images=(draw_picture(640, 480),))
    length = len(encode(row, processor))
    example = encode(row, processor, max_length=length)
    assert (len(example), example.num_tiles, example.notes) == (length, (13,), ())


def test_a_row_too_long_gets_fewer_tiles_and_says_so(processor, draw_picture):
    row = record("<image>\nQ", "A", images=(draw_picture(640, 480),))
    length = len(encode(row, processor))
    example = encode(row, processor, max_length=length - 1)
    assert example.num_tiles == (7,)  # 4 × 3 needs a budget of 12; below, 3 × 2 is the nearest
    assert len(example) == length - 6 * 16
    assert example.notes == (f"13 → 7 tiles to fit {length - 1} tokens",)
    assert len(example.tiles) == 7


def test_two_pictures_are_reduced_together(processor, draw_picture):
    row = record("<image><image>", "A", images=(draw_picture(640, 480), draw_picture(640, 480)))
    full = encode(row, processor)
    assert full.num_tiles == (7, 7)
    example = encode(row, processor, max_length=len(full) - 5 * 16)
    assert example.num_tiles == (1, 1)  # the next smaller grid is 2 × 2, of 5 tiles: 10 are one too many
    assert len(example) == len(full) - 12 * 16
    assert supervised(example, processor.tokenizer) == "A<|im_end|>"


def test_a_row_that_never_fits_is_refused_with_place_and_size(processor, draw_picture):
    row = record("<image>\nQ", "A", images=(draw_picture(640, 480),))
    fewest = len(encode(row, processor)) - 12 * 16
    assert encode(row, processor, max_length=fewest).num_tiles == (1,)
    with pytest.raises(DataError) as caught:
        encode(row, processor, max_length=fewest - 1)
    assert str(caught.value) == (
        f"train.jsonl:17: {fewest} tokens at the fewest tiles ({fewest - 16} of text, 1 tiles); "
        f"expected at most {fewest - 1}; raise max_seq_length or shorten the row"
    )


def test_a_long_text_is_refused_and_not_cut(processor):
    with pytest.raises(DataError, match=r"train\.jsonl:17: \d+ tokens .*expected at most 64; raise max_seq_length"):
        encode(record("Q", "word " * 200), processor, max_length=64)


def test_the_length_of_a_row_is_known_before_its_pictures_are_read(processor, draw_picture):
    row = record("<image>\nQ", "A", images=(draw_picture(640, 480),))
    for limit in (None, 180, 100):
        example = encode(row, processor, max_length=limit)
        text = encode_text(row, processor, sizes=[(640, 480)], max_length=limit)
        budget, num_tiles = text.budget, text.num_tiles
        assert tuple(num_tiles) == example.num_tiles
        assert len(processor.tile(draw_picture(640, 480), max_tiles=budget)) == num_tiles[0]


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<img>", "</img>"])
@pytest.mark.parametrize("place", ["question", "answer", "text row"])
def test_typed_image_tokens_are_refused(processor, draw_picture, token, place):
    images = () if place == "text row" else (draw_picture(),)
    texts = {
        "question": (f"<image> {token}", "A"),
        "answer": ("<image>", f"A {token}"),
        "text row": (f"What is {token}?", "A"),
    }[place]
    with pytest.raises(
        DataError, match=rf"train\.jsonl:17: \d+ {token} tokens but its pictures make \d+; .* Remove it"
    ):
        encode(record(*texts, images=images), processor)


def test_a_placeholder_too_many_is_refused_with_its_place(processor, draw_picture):
    with pytest.raises(DataError, match=r"train\.jsonl:17: more <image>"):
        encode(record("<image><image>", "A", images=(draw_picture(),)), processor)


def test_a_row_without_answer_has_nothing_to_learn(processor):
    with pytest.raises(DataError, match=r"train\.jsonl:17: no supervised token; expected an assistant turn"):
        encode(record("Q"), processor)


def test_a_missing_picture_is_refused_with_its_place(processor, tmp_path):
    with pytest.raises(DataError, match=r"train\.jsonl:17: picture .*gone\.png does not exist"):
        encode(record("<image>", "A", images=(tmp_path / "gone.png",)), processor)


def test_jpeg_quality_is_drawn_for_seed_epoch_and_row_only(processor, draw_picture):
    row = record("<image>", "A", images=(draw_picture(640, 480),), augment_jpeg=True)
    other = Record(**{**vars(row), "where": "train.jsonl:18"})

    def tiles(a_record, draw):
        return encode(a_record, processor, draw=draw).tiles.tobytes()

    first = tiles(row, (0, 0))
    assert first == tiles(row, (0, 0))
    assert first != tiles(record("<image>", "A", images=row.images), (0, 0))
    assert len({first, tiles(row, (0, 1)), tiles(row, (1, 0)), tiles(other, (0, 0))}) == 4


# once ----------------------------------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "\n",
            "▁",
            "a",
            "浦语",
            "🍠\u200d",
            "e\u0301",
            "ﬁ",
            "<",
            ">",
            "<img",
            "img>",
            "</img",
            "<s>",
            "<|im_end|>",
        ]
        + ["<|end|>", "<|user|>", " <|assistant|> ", "<box>[[1, 2, 3, 4]]</box>", "<IMG_CONTEXT>", "</img>"]
    ),
)
TEXTS = st.lists(PIECES, max_size=6).map("".join)


@st.composite
def conversations(draw):
    """(record of one to three exchanges with up to three pictures in any places, sizes of the pictures)."""
    sizes = draw(st.lists(st.sampled_from(list(SIZES.values())), max_size=3))
    questions = [draw(TEXTS).replace("<image>", "") for _ in range(draw(st.integers(1, 3)))]
    for _ in sizes:
        number = draw(st.integers(0, len(questions) - 1))
        questions[number] = draw(st.sampled_from(["{}<image>", "<image>{}", "<image>\n{}"])).replace(
            "{}", questions[number]
        )
    turns = [text for question in questions for text in (question, draw(TEXTS))]
    return record(*turns, images=("not opened",) * len(sizes)), sizes


def limit_of(row):
    return (None, 300, 3000)[len(row.turns[0].text) % 3]


def outcome(row, processor, sizes):
    try:
        text = encode_text(row, processor, sizes=sizes, max_length=limit_of(row))
    except DataError as error:
        return str(error)
    return text.input_ids.tolist(), text.labels.tolist(), text.num_tiles, text.notes


@pytest.mark.parametrize("model", ["nano", "2b", "26b", "4b"])
def test_text_with_empty_pictures_gives_the_ids_and_labels_of_the_whole_text(processor, request, model):
    if model != "nano":
        processor = load_processor(request.getfixturevalue("reference") / "checkpoints" / f"internvl-{model}")
    processor = light_processor(processor)
    whole = replace(processor)
    vars(whole)["splices"] = False
    assert processor.splices and not whole.splices

    @settings(derandomize=True, database=None, deadline=None, max_examples=200)
    @given(conversations())
    def compare(drawn):
        row, sizes = drawn
        assert outcome(row, processor, sizes) == outcome(row, whole, sizes)

    compare()


@pytest.mark.parametrize("token", ["<img>", "</img>", "<IMG_CONTEXT>"])
@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "normalized", "single_word", "special"])
def test_image_tokens_that_change_what_is_beside_them_are_tokenised_with_the_whole_text(processor, token, flag):
    said = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    (added,) = [one for one in said["added_tokens"] if one["content"] == token]
    added[flag] = not added[flag]
    changed = FastTokenizer(Tokenizer.from_str(json.dumps(said)), processor.tokenizer.unk_token_id)
    other = replace(processor, tokenizer=changed)
    text = encode_text(record("<image> Q ", " A", images=("a",)), other, sizes=[(112, 112)])
    assert not other.splices
    whole = f"{processor.template.user_prefix}<img>{'<IMG_CONTEXT>' * 16}</img> Q<|im_end|>"
    ids = changed(whole)["input_ids"][1:]
    assert any(text.input_ids[n : n + len(ids)].tolist() == ids for n in range(len(text.input_ids)))


def test_a_row_is_tokenised_once_and_its_picture_opened_once(processor, draw_picture, tmp_path, monkeypatch):
    draw_picture(640, 480).save(tmp_path / "a.png")
    seen = []

    class Counted(FastTokenizer):
        def __call__(self, text, **options):
            seen.append("tokenised")
            return super().__call__(text, **options)

    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: seen.append("opened") or real(*args, **options))
    tokenizer = light_processor(processor).tokenizer
    counted = replace(processor, tokenizer=Counted(tokenizer.backend_tokenizer, tokenizer.unk_token_id))
    row = record("<image>\nQ", "A", images=(tmp_path / "a.png",))
    assert encode(row, counted, max_length=200).num_tiles == (7,)
    assert seen == ["opened", "tokenised"]


def _reference_record(row):
    pictures = tuple(Image.new("RGB", SIZES[tiles]) for tiles in row["num_tiles"])
    turns = tuple(
        Turn({"human": "user", "gpt": "assistant"}[turn["from"]], turn["value"]) for turn in row["conversations"]
    )
    return Record(id=0, turns=turns, images=pictures, max_tiles=12 * max(1, len(pictures)))


@pytest.mark.parametrize(("template", "model"), [("internlm2-chat", "2b"), ("phi3-chat", "4b")])
def test_ids_and_labels_are_those_of_the_reference(reference, template, model):
    """Where it gives up on a row (labels all ignored), its ids hold and the answers must be supervised all the same."""
    processor = load_processor(reference / "checkpoints" / f"internvl-{model}")
    rows = [row for row in json.loads((reference / "labels.json").read_text()) if row["template"] == template]
    assert (len(rows), sum(row["upstream_reports_mismatch"] for row in rows)) == (24, 0 if model == "2b" else 12)
    for row in rows:
        example = encode(_reference_record(row), processor)
        assert list(example.num_tiles) == row["num_tiles"]
        assert run_lengths(example.input_ids) == row["input_ids_rle"]
        answers = [turn["value"].strip() for turn in row["conversations"] if turn["from"] == "gpt"]
        assert _spans(example, processor.tokenizer) == [answer + processor.template.end for answer in answers]
        if not row["upstream_reports_mismatch"]:
            assert run_lengths(example.labels) == row["labels_rle"]


def _spans(example, tokenizer):
    """The text of each run of supervised tokens; decoded behind a colon, so that no leading space is lost."""
    places = np.flatnonzero(example.labels != IGNORE_INDEX)
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    colon = tokenizer(":")["input_ids"][1:]
    return [tokenizer.decode(colon + example.input_ids[run].tolist()).removeprefix(":") for run in runs]
