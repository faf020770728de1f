"""nano's tokenizer: the ids of a released InternLM2 folder, at a small scale."""

import json
from pathlib import Path

import pytest
import sentencepiece

import ivlkit.nano.tokenizer as nano_tokenizer
from ivlkit.nano.tokenizer import train_tokenizer

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


def test_there_are_1024_pieces_and_the_last_six_are_placeholders(pieces):
    assert pieces.get_piece_size() == 1024
    assert [pieces.id_to_piece(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    last = [pieces.id_to_piece(i) for i in range(1018, 1024)]
    assert last == [f"[UNUSED_TOKEN_{number}]" for number in range(141, 147)]
    assert "UNUSED" not in pieces.id_to_piece(1017)


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
    assert len(pieces.encode("garden")) >= 3
    assert [len(pieces.encode(f"{role}\n")) for role in ("system", "user", "assistant")] == [2, 2, 2]


def test_added_tokens_have_the_released_order(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {int(number): token["content"] for number, token in config["added_tokens_decoder"].items()}
    assert added == {
        0: "<unk>",
        1: "<s>",
        2: "</s>",
        1018: "<|plugin|>",
        1019: "<|interpreter|>",
        1020: "<|action_end|>",
        1021: "<|action_start|>",
        1022: "<|im_end|>",
        1023: "<|im_start|>",
        1024: "<img>",
        1025: "</img>",
        1026: "<IMG_CONTEXT>",
        1027: "<quad>",
        1028: "</quad>",
        1029: "<ref>",
        1030: "</ref>",
        1031: "<box>",
        1032: "</box>",
    }
    assert all(token["special"] for token in config["added_tokens_decoder"].values())
    assert (config["tokenizer_class"], config["pad_token"]) == ("InternLM2Tokenizer", "</s>")
    assert "auto_map" not in config
    assert json.loads((folder / "added_tokens.json").read_text())["<IMG_CONTEXT>"] == 1026


def test_the_shipped_files_have_the_same_ids(folder):
    shipped = Path(nano_tokenizer.__file__).parent / "model"
    for name in FILES:
        if name.endswith(".json"):
            assert (shipped / name).read_bytes() == (folder / name).read_bytes()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(shipped / "tokenizer.model"))
    assert pieces.get_piece_size() == 1024
