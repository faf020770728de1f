"""nano's tokenizer: the ids of a released InternLM2 folder, at a small scale."""

import json
import random

import pytest
import sentencepiece
from tokenizer import train_tokenizer

from ivlkit.models.families import NANO_FOLDER
from ivlkit.nano.curriculum import make_sample
from ivlkit.nano.scene import MATERIAL

FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer.model", "tokenizer_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pieces(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_training_twice_gives_the_same_bytes(folder, tmp_path):
    train_tokenizer(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_there_are_1280_pieces_and_the_last_six_are_placeholders(pieces):
    assert pieces.get_piece_size() == 1280
    assert [pieces.id_to_piece(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    last = [pieces.id_to_piece(i) for i in range(1274, 1280)]
    assert last == [f"[UNUSED_TOKEN_{number}]" for number in range(141, 147)]
    assert "UNUSED" not in pieces.id_to_piece(1273)


@pytest.mark.parametrize(
    "text",
    [
        "What number is written here?",
        " two  spaces\n\nand lines",
        "407",
        "书生·浦语",
        "good 😀 morning",
        "naïve\tcafé",
        "<|x|>",
        "x = a[0] * {b}; # ~`^@$%&|\\",
    ],
)
def test_any_text_comes_back(pieces, text):
    assert pieces.decode(pieces.encode(text)) == text


def test_every_digit_is_a_token_of_its_own(pieces):
    assert pieces.encode("407", out_type=str) == ["4", "0", "7"]
    assert pieces.encode("is 12", out_type=str)[-2:] == ["1", "2"]


def test_a_question_is_short_and_a_word_is_spelt(pieces):
    assert pieces.encode("What number is written here?", out_type=str) == [
        "What",
        "▁number",
        "▁is",
        "▁written",
        "▁here",
        "?",
    ]
    assert pieces.encode("garden", out_type=str) == list("garden")
    assert pieces.encode("GARDEN", out_type=str) == list("GARDEN")


@pytest.mark.parametrize("split", MATERIAL)
@pytest.mark.parametrize("task", ["unknown_word", "repeat_word", "printed_word"])
def test_a_word_to_be_read_or_repeated_is_spelt_wherever_it_stands(pieces, task, split):
    for seed in range(300):
        ((question, answer),) = make_sample(task, random.Random(seed), split=split).turns
        word = answer.removeprefix('The word is "').removesuffix('".').replace("-", "")
        if word.istitle() and len(pieces.encode(word)) < len(word):
            continue  # begins like a sentence, as "Where" does
        for text in (question, answer):
            if word in text:
                assert "|".join(word) in "|".join(pieces.encode(text, out_type=str)), text


def test_few_words_with_a_capital_begin_like_a_sentence(pieces):
    words = [make_sample("unknown_word", random.Random(seed)).turns[0][1] for seed in range(2000)]
    titles = [word for word in words if word.istitle() and " " not in word]
    assert len(titles) > 100
    assert sum(len(pieces.encode(word)) < len(word) for word in titles) <= 0.4 * len(titles)


def test_added_tokens_have_the_released_order(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {int(number): token["content"] for number, token in config["added_tokens_decoder"].items()}
    assert added == {
        0: "<unk>",
        1: "<s>",
        2: "</s>",
        1274: "<|plugin|>",
        1275: "<|interpreter|>",
        1276: "<|action_end|>",
        1277: "<|action_start|>",
        1278: "<|im_end|>",
        1279: "<|im_start|>",
        1280: "<img>",
        1281: "</img>",
        1282: "<IMG_CONTEXT>",
        1283: "<quad>",
        1284: "</quad>",
        1285: "<ref>",
        1286: "</ref>",
        1287: "<box>",
        1288: "</box>",
    }
    assert all(token["special"] for token in config["added_tokens_decoder"].values())
    assert (config["tokenizer_class"], config["pad_token"]) == ("InternLM2Tokenizer", "</s>")
    assert "auto_map" not in config
    assert json.loads((folder / "added_tokens.json").read_text())["<IMG_CONTEXT>"] == 1282


def test_the_shipped_files_are_what_the_command_makes(folder):
    for name in FILES:
        assert (NANO_FOLDER / name).read_bytes() == (folder / name).read_bytes(), name
