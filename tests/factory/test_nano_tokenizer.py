"""nano's tokenizer: the ids of a released InternLM2 folder, at a small scale."""

import json
import random

import pytest
import sentencepiece
from tokenizer import train_tokenizer

from ivlkit.models.families import NANO_FOLDER
from ivlkit.models.tokenizer import load_tokenizer
from ivlkit.nano.curriculum import make_sample
from ivlkit.nano.scene import MATERIAL
from ivlkit.nano.vocabulary import ACCENTED

FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer.model", "tokenizer_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pieces(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def fast(folder):
    return load_tokenizer(folder)


def test_training_twice_gives_the_same_bytes(folder, tmp_path):
    train_tokenizer(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_there_are_1387_pieces_and_the_last_six_are_placeholders(pieces):
    assert pieces.get_piece_size() == 1387
    assert [pieces.id_to_piece(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    last = [pieces.id_to_piece(i) for i in range(1381, 1387)]
    assert last == [f"[UNUSED_TOKEN_{number}]" for number in range(141, 147)]
    assert "UNUSED" not in pieces.id_to_piece(1380)


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


@pytest.mark.parametrize("letter", ACCENTED + "¿¡")
def test_every_letter_with_an_accent_is_one_piece_wherever_it_stands(pieces, fast, letter):
    assert pieces.encode(letter, out_type=str) == fast.tokenize(letter) == [letter]
    for text in (f"b{letter}d", f"The {letter}", letter * 3):
        numbers = fast.encode(text, add_special_tokens=False)
        assert numbers.count(fast.get_vocab()[letter]) == text.count(letter)
        assert pieces.decode(numbers) == fast.decode(numbers) == text


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
        1381: "<|plugin|>",
        1382: "<|interpreter|>",
        1383: "<|action_end|>",
        1384: "<|action_start|>",
        1385: "<|im_end|>",
        1386: "<|im_start|>",
        1387: "<img>",
        1388: "</img>",
        1389: "<IMG_CONTEXT>",
        1390: "<quad>",
        1391: "</quad>",
        1392: "<ref>",
        1393: "</ref>",
        1394: "<box>",
        1395: "</box>",
    }
    assert all(token["special"] for token in config["added_tokens_decoder"].values())
    assert (config["tokenizer_class"], config["pad_token"]) == ("InternLM2Tokenizer", "</s>")
    assert "auto_map" not in config
    assert json.loads((folder / "added_tokens.json").read_text())["<IMG_CONTEXT>"] == 1389


def test_the_shipped_files_are_what_the_command_makes(folder):
    for name in FILES:
        assert (NANO_FOLDER / name).read_bytes() == (folder / name).read_bytes(), name
