"""The doctor: every bad row is named with its line, every good one counted exactly as it is trained."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

import ivlkit as ivl
from ivlkit.data.checking.doctor import diagnose
from ivlkit.data.checking.examine import BAD, GOOD, Task
from ivlkit.data.checking.findings import KINDS, LEVELS
from ivlkit.data.checking.lengths import epoch_lengths, row_lengths
from ivlkit.data.checking.mend import mend
from ivlkit.data.checking.pictures import look_at
from ivlkit.data.checking.processes import examine_all
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import encode
from ivlkit.data.processor import FastTokenizer, light_processor
from ivlkit.errors import DataError

USER, BOT = "human", "gpt"


def talk(*values, roles=(USER, BOT)):
    return [{"from": roles[number % 2], "value": value} for number, value in enumerate(values)]


def row(**fields):
    return {"conversations": talk("Q", "A")} | fields


def picture_row(**fields):
    return {"image": "a.png", "conversations": talk("<image>\nQ", "A")} | fields


def ask(answer, **fields):
    return picture_row(conversations=talk("<image>\nQ", answer), **fields)


BAD_ROWS = {
    # what is written on line 2 → the kind of problem
    "a truncated line": (b'{"conversations": [', "broken_json"),
    "two objects on a line": (b'{"id": 1} {"id": 2}', "broken_json"),
    "single quotes": (b"{'conversations': []}", "broken_json"),
    "a trailing comma": (b'{"id": 1,}', "broken_json"),
    "a raw NUL byte": (b'{"id": "\x00"}', "broken_json"),
    "very deep nesting": (b"[" * 100_000, "broken_json"),
    "a mark in the middle of a line": (b'{"id": 1} \xef\xbb\xbf', "broken_json"),
    "latin-1": ('{"id": "ä"}'.encode("latin-1"), "not_utf8"),
    "UTF-16": ('{"id": "ä"}'.encode("utf-16"), "not_utf8"),
    "a list": (b"[1, 2]", "not_an_object"),
    "a number": (b"7", "not_an_object"),
    "null": (b"null", "not_an_object"),
    "no conversations": ({"id": 1}, "no_conversations"),
    "an empty conversation": (row(conversations=[]), "no_conversations"),
    "conversations as a text": (row(conversations="Q A"), "no_conversations"),
    "a turn that is a text": (row(conversations=["Q", "A"]), "bad_turn"),
    "a turn without a value": (row(conversations=[{"from": USER}, {"from": BOT, "value": "A"}]), "bad_turn"),
    "a value that is a number": (row(conversations=talk("Q", 13.65)), "bad_turn"),
    "a role in capitals": (row(conversations=talk("Q", "A", roles=("Human", "GPT"))), "unknown_role"),
    "a role of another kit": (row(conversations=talk("Q", "A", roles=("human", "bard"))), "unknown_role"),
    "a role that is a number": (row(conversations=talk("Q", "A", roles=(0, 1))), "unknown_role"),
    "two questions in a row": (row(conversations=talk("Q", "Q", "A", roles=(USER, USER))), "role_order"),
    "an answer first": (row(conversations=talk("A", "Q", roles=(BOT, USER))), "role_order"),
    "a system turn in the middle": (
        row(conversations=[*talk("Q", "A"), {"from": "system", "value": "S"}]),
        "role_order",
    ),
    "no answer": (row(conversations=talk("Q")), "no_answer"),
    "a question last": (row(conversations=talk("Q", "A", "Q")), "no_answer"),
    "only a system turn": (row(conversations=[{"from": "system", "value": "S"}]), "no_answer"),
    "half a surrogate pair": (rb'{"conversations": [{"from": "human", "value": "\ud83d"}]}', "half_surrogate"),
    "an image that is a number": (picture_row(image=7), "image_field"),
    "an image that is an object": (picture_row(image={"path": "a.png"}), "image_field"),
    "a list with an empty name": (picture_row(image=["a.png", ""]), "image_field"),
    "two pictures, one placeholder": (picture_row(image=["a.png", "b.png"]), "placeholder_count"),
    "two pictures, no placeholder": (row(image=["a.png", "b.png"]), "placeholder_count"),
    "one picture, two placeholders": (
        picture_row(conversations=talk("<image><image>Q", "A")),
        "placeholder_count",
    ),
    "a placeholder in the answer only": (
        picture_row(image=["a.png", "b.png"], conversations=talk("<image>Q", "<image>A")),
        "placeholder_count",
    ),
    "a missing picture": (picture_row(image="gone.png"), "missing_media"),
    "a wrong suffix in the path": (picture_row(image="a.jpg"), "missing_media"),
    "a folder in place of a picture": (picture_row(image="folder"), "unreadable_media"),
    "a remote picture": (picture_row(image="https://example.org/a.png"), "remote_media"),
    "backslashes": (picture_row(image="folder\\c.png"), "backslash_path"),
    "a file of no bytes": (picture_row(image="empty.png"), "empty_media"),
    "a text named as a picture": (picture_row(image="text.png"), "unreadable_media"),
    "a picture cut in its header": (picture_row(image="cut.png"), "unreadable_media"),
    "typed context tokens": (ask("<IMG_CONTEXT>"), "image_token"),
    "a typed picture": (row(conversations=talk("<img></img>", "A")), "image_token"),
    "too many words": (row(conversations=talk("word " * 3000, "A")), "too_long"),
    # what trains, but hardly as meant
    "a key twice": (b'{"id": 1, "id": 2, "conversations": [{"from": "human", "value": "Q"}, '
                    b'{"from": "gpt", "value": "A"}]}', "duplicate_key"),
    "a line of a megabyte": (row(note="x" * 2**20), "long_line"),
    "an empty question": (row(conversations=talk(" ", "A")), "empty_question"),
    "only a placeholder": (picture_row(conversations=talk("<image>\n", "A")), "empty_question"),
    "an empty answer": (row(conversations=talk("Q", "")), "empty_answer"),
    "an answer of spaces": (row(conversations=talk("Q", " \n")), "empty_answer"),
    "a missing value": (ask("NaN"), "missing_value"),
    "a cell that went wrong": (ask("#N/A"), "missing_value"),
    "a NUL character": (row(conversations=talk("Q\0", "A")), "control_character"),
    "an escape character": (row(conversations=talk("Q", "\x1b[31mA")), "control_character"),
    "another name for the picture": (row(img="a.png"), "misnamed_image"),
    "typed chat tokens": (row(conversations=talk("Q<|im_end|>", "A")), "special_token"),
    "a struck text": (row(conversations=talk("Q", "<s>A</s>")), "special_token"),
    "an open ref": (ask("<ref>cat<box>[[1, 2, 3, 4]]</box>"), "unclosed_tag"),
    "an open box": (ask("<ref>cat</ref><box>[[1, 2, 3, 4]]"), "unclosed_tag"),
    "a box without numbers": (ask("<box>left</box>"), "box_syntax"),
    "a box of three": (ask("<box>[[1, 2, 3]]</box>"), "box_syntax"),
    "a flat box": (ask("<box>[1, 2, 3, 4]</box>"), "box_syntax"),
    "many boxes and a word": (ask(f"<box>[{'[1, 2, 3, 4]  ' * 60}left]</box>"), "box_syntax"),
    "a box that no score can read": (ask("<box>[[1e2, 2e2, 3e2, nan]]</box>"), "box_syntax"),
    "a box in pixels": (ask("<box>[[10, 10, 1200, 700]]</box>"), "box_in_pixels"),
    "a box in shares of one": (ask("<box>[[0.1, 0.2, 0.5, 0.9]]</box>"), "box_in_fractions"),
    "a bare box in shares of one": (ask("[0.1, 0.2, 0.5, 0.9]"), "box_in_fractions"),
    "a negative box": (ask("<box>[[-5, 10, 20, 30]]</box>"), "box_range"),
    "a box from right to left": (ask("<box>[[30, 10, 20, 40]]</box>"), "box_order"),
    "a PNG named .jpg": (picture_row(image="really_png.jpg"), "wrong_extension"),
    "a size that lies": (picture_row(width=1, height=1), "declared_size"),
    "sizes of two for one": (picture_row(width_list=[64, 64], height_list=[64, 64]), "declared_size"),
    "a line of pixels": (picture_row(image="line.png"), "extreme_aspect"),
    "a picture outside": (picture_row(image="../outside.png"), "outside_root"),
    "the row above again": (picture_row(conversations=talk("<image>\nfirst", "1")), "duplicate_row"),
    # worth knowing
    "a mark at the start of a line": (b"\xef\xbb\xbf" + json.dumps(row()).encode(), "byte_order_mark"),
    "a line of Windows": (json.dumps(row()).encode() + b"\r", "crlf"),
    "spaces around an answer": (row(conversations=talk("Q", " A\n")), "outer_whitespace"),
    "a literal placeholder": (row(conversations=talk("What is <image>?", "A")), "literal_placeholder"),
    "a placeholder in an answer": (ask("<image>"), "literal_placeholder"),
    "an icon": (picture_row(image="icon.png"), "tiny_picture"),
    "another answer to the row above": (picture_row(conversations=talk("<image>\nfirst", "2")), "contradiction"),
    "the id above again": (row(id="first"), "duplicate_id"),
    "a copy of a picture": (picture_row(image="copy.png"), "duplicate_picture"),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with the pictures that the rows name."""
    root = tmp_path_factory.mktemp("set") / "root"
    (root / "folder").mkdir(parents=True)
    sizes = {"a": (64, 64), "b": (80, 60), "line": (300, 2), "icon": (16, 16), "folder/c": (50, 50)}
    for number, (name, size) in enumerate(sizes.items()):
        Image.new("RGB", size, (number * 40, 90, 160)).save(root / f"{name}.png")
    Image.new("RGB", (33, 33), "red").save(root.parent / "outside.png")
    Image.new("RGB", (40, 40), "green").save(root / "really_png.jpg", format="PNG")
    (root / "copy.png").write_bytes((root / "a.png").read_bytes())
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("not a picture")
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:20])
    return root


@pytest.fixture
def check_lines(pictures, tmp_path, processor):
    """`check_lines([row or bytes, …])` → the report; the pictures' folder is the root."""

    def check(lines, name="train.jsonl", **options):
        path = tmp_path / name
        path.write_bytes(b"".join(_as_line(line) + b"\n" for line in lines))
        return diagnose(path, processor, root=pictures, **{"max_length": 2000} | options)

    return check


def _as_line(line):
    return line if isinstance(line, bytes) else json.dumps(line).encode()


def test_there_are_more_than_forty_kinds_of_bad_rows():
    assert len(BAD_ROWS) >= 75
    assert len({code for _, code in BAD_ROWS.values()}) >= 40
    assert {code for _, code in BAD_ROWS.values()} <= set(KINDS)


@pytest.mark.parametrize("name", BAD_ROWS)
def test_each_kind_of_bad_row_is_caught_with_its_line(check_lines, name):
    line, code = BAD_ROWS[name]
    first = picture_row(id="first", conversations=talk("<image>\nfirst", "1"))
    report = check_lines([first, line, row(id="last", conversations=talk("last", "3"))])
    problem, *others = report.by_code(code)
    assert {one.where for one in (problem, *others)} == {"train.jsonl:2"}
    assert str(problem).startswith(f"train.jsonl:2: {KINDS[code].level}: ")
    assert "; expected " in str(problem)
    errors = {one.where for one in report.problems if one.level == "error"}
    assert errors == ({"train.jsonl:2"} if KINDS[code].level == "error" else set())
    assert report.ok == (not errors)
    assert (report.stats["rows"], report.stats["bad"]) == (3, len(errors))


def test_rows_in_are_rows_good_and_listed(check_lines):
    lines = [line for line, _ in BAD_ROWS.values()]
    report = check_lines([row(id=number) if number % 2 else lines[number // 2] for number in range(2 * len(lines))])
    stats = report.stats
    assert stats["rows"] == stats["good"] + stats["bad"] == 2 * len(lines)
    listed = {problem.row for problem in report.problems if problem.level == "error"}
    assert len(listed) == stats["bad"]


def refused_by_encoding(data, processor):
    """Numbers of the rows that can't be encoded."""
    refused = set()
    for number in range(len(data)):
        try:
            encode(data[number], processor, max_length=2000)
        except DataError:
            refused.add(number)
    return refused


def test_an_error_is_exactly_what_encoding_refuses(check_lines, tmp_path, pictures, processor):
    """The doctor's word against the encoder's, row by row."""
    lines = [line for line, _ in BAD_ROWS.values()]
    report = check_lines(lines, limit=1000)
    called_bad = {problem.row for problem in report.problems if problem.level == "error"}
    data = open_data(tmp_path / "train.jsonl", root=pictures)
    refused = refused_by_encoding(data, processor)
    assert called_bad == refused
    assert 40 < len(refused) < len(lines)


def test_good_rows_have_no_findings(check_lines):
    lines = [
        row(),
        picture_row(width=64, height=64, conversations=talk("<image>\nQ0", "A")),
        picture_row(image=["a.png", "b.png"], conversations=talk("<image> and <image>", "A", "more?", "yes"),
                    width_list=[64, 80], height_list=[64, 60]),
        row(conversations=[{"from": "system", "value": "S"}, *talk("Q1", "A < B")]),
        ask("<ref>cat</ref><box>[[0, 0, 1000, 999], [1, 2, 3, 4]]</box>", width=64, height=64),
        row(image=None, conversations=talk("Q2", "A")),
    ]  # fmt: skip
    report = check_lines(lines)
    assert report.problems[:1] == [] or {problem.code for problem in report.problems} == {"unused_files"}
    assert report.ok and report.stats["good"] == 6


# exact lengths -------------------------------------------------------------------------------------------------------


def mixed_rows(count=120):
    """Rows of every kind, in several scripts, with whitespace where tokenizers differ."""
    draw = random.Random(0)
    pieces = [
        "Was ist das?",
        " two  spaces",
        "日本語です",
        "emoji 🙂",
        "\ttab\n",
        "a" * 50,
        "<ref>x</ref>",
        "ﬁne",
        "0x3f",
    ]
    rows = []
    for number in range(count):
        images = draw.choice([[], ["a.png"], ["b.png", "a.png"], ["line.png"]])
        question = "<image>" * len(images) + " ".join(draw.choices(pieces, k=draw.randint(1, 6)))
        turns = [question, " ".join(draw.choices(pieces, k=draw.randint(0, 9)))]
        turns += ["more " + draw.choice(pieces), draw.choice(pieces)] if number % 3 == 0 else []
        first = [{"from": "system", "value": "Be brief. "}] if number % 5 == 0 else []
        rows.append({"id": number, "conversations": [*first, *talk(*turns)]} | ({"image": images} if images else {}))
    return rows


@pytest.mark.parametrize("model", ["tiny", "2b", "4b"])
def test_lengths_are_exactly_those_of_encoding(write_rows, pictures, processor, request, model):
    if model != "tiny":
        reference = request.getfixturevalue("reference")
        processor = ivl.load_processor(reference / "checkpoints" / f"internvl-{model}")
    path = write_rows(mixed_rows())
    data = open_data(path, root=pictures)
    task = Task(data.sources, light_processor(processor), 1200)
    (block,) = examine_all(task, [None], workers=1)
    encoded = [encode(record, processor, max_length=1200) for record in data] if model == "tiny" else None
    assert (block.state == GOOD).all()
    if encoded is None:  # tiles of 448 px take their time; tokens and labels do not need them
        from ivlkit.data.encode import encode_text, picture_sizes

        encoded = [encode_text(r, processor, sizes=picture_sizes(r, processor), max_length=1200) for r in data]
        supervised = [int((one.labels != -100).sum()) for one in encoded]
    else:
        supervised = [one.num_supervised for one in encoded]
    assert block.final[0].tolist() == [len(one.input_ids) for one in encoded]
    assert block.final[1].tolist() == [sum(one.num_tiles) for one in encoded]
    assert block.lengths[2].tolist() == supervised


def test_a_long_row_says_with_how_many_tiles_it_fits(check_lines, tmp_path, pictures):
    Image.new("RGB", (640, 480)).save(pictures / "large.png")
    try:
        report = check_lines([picture_row(image="large.png")], max_length=200)
    finally:
        (pictures / "large.png").unlink()
    (problem,) = report.by_code("fewer_tiles")
    assert problem.found == "13 → 7 tiles to fit 200 tokens"
    assert report.stats["tiles"]["max"] == 7


def test_lengths_of_rows_follow_repeats_and_parts(write_rows, pictures, processor):
    path = write_rows([row(), picture_row(), {"id": "broken"}])
    data = open_data(path, root=pictures)
    tokens, tiles = row_lengths(data, processor)
    assert tokens.tolist() == [len(encode(data[0], processor)), len(encode(data[1], processor)), 0]
    assert tiles.tolist() == [0, 1, 0]
    again, _ = row_lengths(data.select([1, 1, 0]), processor)
    assert again.tolist() == tokens[[1, 1, 0]].tolist()


def test_a_videos_length_is_that_of_its_epoch(write_rows, pictures, processor, tmp_path, draw_picture):
    """40 frames give 8 to 32 of 16 tokens, another number in every epoch; a picture stays as it is."""
    (tmp_path / "clip").mkdir()
    for number in range(40):
        draw_picture(112, 112, seed=number).save(tmp_path / "clip" / f"{number:02}.png")
    shutil.copy(pictures / "a.png", tmp_path / "a.png")
    clip = {"video": "clip", "conversations": talk("<video>\nQ", "A")}
    data = open_data(write_rows([picture_row(), clip, row(), clip])).select([3, 0, 2, 1, 3])
    tokens, tiles = epoch_lengths(data, processor, seed=7, epochs=3, max_length=700)
    for epoch in range(3):
        encoded = [encode(record, processor, max_length=700, draw=(7, epoch)) for record in data]
        assert tokens[epoch].tolist() == [len(one) for one in encoded]
        assert tiles[epoch].tolist() == [len(one.tiles) for one in encoded]
    assert len(set(tiles[:, 0].tolist())) > 1 and tokens.max() <= 700
    still, _ = epoch_lengths(data.select([1, 2]), processor, seed=7, epochs=3, max_length=700)
    assert still.shape == (2,)


def test_stored_lengths_are_used_again_until_the_file_changes(tmp_path, pictures, processor, monkeypatch):
    import ivlkit.data.checking.lengths as lengths

    path = tmp_path / "large.jsonl"
    line = json.dumps(row(note="x" * 5000)) + "\n"
    path.write_text(line * 220)  # over 1 MiB
    tokens, _ = row_lengths(open_data(path), processor)
    with monkeypatch.context() as patch:
        patch.setattr(lengths, "examine_all", None)
        again, _ = row_lengths(open_data(path), processor)
    assert again.tolist() == tokens.tolist() == [len(encode(open_data(path)[0], processor))] * 220
    path.write_text(line.replace('"A"', '"A longer answer"') * 220)
    changed, _ = row_lengths(open_data(path), processor)
    assert changed[0] > tokens[0]


def test_without_a_model_everything_but_lengths_is_checked(check_lines, tmp_path, pictures):
    (tmp_path / "train.jsonl").write_bytes(_as_line(row()) + b"\n" + _as_line(ask("<|im_end|>")) + b"\n")
    report = diagnose(tmp_path / "train.jsonl", root=pictures)
    assert [problem.code for problem in report.problems if problem.level != "info"] == ["special_token"]
    assert "tokens" not in report.stats and report.stats["good"] == 2


def test_a_picture_that_ends_early_is_found(check_lines, pictures):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(pictures / "half.png")
    whole = (pictures / "half.png").read_bytes()
    (pictures / "half.png").write_bytes(whole[: len(whole) // 2])
    try:
        assert check_lines([picture_row(image="half.png")], pictures="exist").ok
        (problem,) = check_lines([picture_row(image="half.png")], pictures="header").by_code("unreadable_media")
    finally:
        (pictures / "half.png").unlink()
    assert problem.where == "train.jsonl:1" and "half.png can't be decoded" in problem.found


def test_declared_sizes_count_only_where_files_are_not_opened(check_lines):
    lines = [picture_row(width=448, height=112)]
    assert check_lines(lines).stats["tiles"]["max"] == 1
    report = check_lines(lines, pictures="exist")
    assert report.stats["tiles"]["max"] == 5
    assert report.by_code("declared_size") == []


@pytest.mark.parametrize("sides", [(10**400, 1), (10**30, 10**30)])
def test_a_declared_size_that_no_picture_has_does_not_count(check_lines, sides):
    report = check_lines([picture_row(width=sides[0], height=sides[1])], pictures="exist")
    assert report.ok and report.stats["tiles"]["max"] == check_lines([picture_row()]).stats["tiles"]["max"]


# rows together -------------------------------------------------------------------------------------------------------


@pytest.fixture
def check_meta(tmp_path, pictures, write_rows):
    """`check_meta(a=(rows, fields), …)` → the report on a meta file of these sets."""

    def check(**sets):
        entries = {}
        for name, (rows, fields) in sets.items():
            path = write_rows(rows, f"{name}.jsonl") if rows is not None else tmp_path / f"{name}.jsonl"
            entries[name] = {"root": str(pictures), "annotation": str(path)} | fields
        (tmp_path / "meta.json").write_text(json.dumps(entries))
        return diagnose(tmp_path / "meta.json")

    return check


def test_a_picture_on_both_sides_of_a_split_is_an_error(check_meta):
    report = check_meta(
        a=([picture_row(), row()], {}),
        b=([picture_row(image="copy.png", conversations=talk("Other", "B"))], {"split": "test"}),
    )
    (problem,) = report.by_code("leak")
    assert problem.where == "b.jsonl:1" and "copy.png is also in a.jsonl:1 of split 'train'" in problem.found
    assert not report.ok and report.stats["bad"] == 1


def test_a_text_on_both_sides_of_a_split_is_an_error(check_meta):
    report = check_meta(a=([row()], {}), b=([row()], {"split": "validation"}))
    assert [problem.where for problem in report.by_code("leak")] == ["b.jsonl:1"]


def test_two_sets_of_one_split_may_share_pictures(check_meta):
    report = check_meta(a=([picture_row()], {}), b=([ask("B")], {}))
    assert report.ok and report.by_code("leak") == []


def test_answers_that_are_all_equal_are_said_of_ten_rows_and_more(check_lines):
    rows = [row(conversations=talk(f"Q{number}", "yes")) for number in range(10)]
    (problem,) = check_lines(rows).by_code("constant_answers")
    assert "all 10 rows have the answer 'yes'" in problem.found
    assert check_lines(rows[:9]).by_code("constant_answers") == []


def test_a_tokenizer_that_reads_pictures_with_their_text_is_asked_with_both(pictures, tmp_path, processor):
    said = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    next(one for one in said["added_tokens"] if one["content"] == "<img>")["single_word"] = True
    tokenizer = FastTokenizer(Tokenizer.from_str(json.dumps(said)), processor.tokenizer.unk_token_id)
    (tmp_path / "train.jsonl").write_bytes(_as_line(picture_row(conversations=talk("a<image>b", "A"))))
    report = diagnose(tmp_path / "train.jsonl", replace(processor, tokenizer=tokenizer), root=pictures)
    assert report.by_code("image_token")[0].found == "0 <img> tokens but its pictures make 1"


def test_a_picture_of_any_format_under_the_name_of_another_is_said(draw_picture, tmp_path):
    path = str(tmp_path / "really_ppm.png")
    draw_picture(40, 40).save(path, format="PPM")
    assert look_at(path, "header", None).remarks == (("wrong_extension", f"{path} is a PPM"),)


def test_pictures_that_no_row_names_are_listed(check_lines):
    (problem,) = check_lines([picture_row()]).by_code("unused_files")
    assert problem.found.startswith("9 pictures that no row names: b.png, copy.png, cut.png, empty.png, icon.png")


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"repeat_time": "2"}, "meta", "`repeat_time` is '2'"),
        ({"data_augment": "no"}, "meta", "`data_augment` is 'no'"),
        ({"length": 5}, "declared_length", "1 rows, `length` says 5"),
        ({"annotation": "gone.jsonl"}, "missing_file", "no such file"),
        ({"root": "gone"}, "missing_root", "no such folder"),
        ({"repeat_time": 0.1}, "meta", "repeat_time 0.1 of 1 rows leaves none"),
        ({"annotation": "n" * 300}, "missing_file", "no such file"),
        ({"root": "n" * 300}, "missing_root", "no such folder"),
        ({"format": "llama"}, "meta", "`format` is 'llama'"),
        ({"weight": 1, "repeat_time": 2}, "meta", "both `weight` and `repeat_time`"),
    ],
)
def test_an_entry_that_is_wrong_is_named_and_the_others_are_checked(check_meta, fields, code, said):
    report = check_meta(a=([row()], fields), b=([row(), row(conversations=talk("Q"))], {}))
    (problem,) = report.by_code(code)
    assert problem.source == "a" and said in problem.found
    assert [one.where for one in report.by_code("no_answer")] == ["b.jsonl:2"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"a": {}, "a": {}}'])
def test_a_broken_meta_file_is_a_problem(tmp_path, content):
    (tmp_path / "meta.json").write_bytes(content)
    report = diagnose(tmp_path / "meta.json")
    assert [problem.code for problem in report.problems] == ["meta"]
    assert not report.ok and report.stats["rows"] == 0
    assert report._repr_html_()


def test_files_of_one_name_are_told_apart(check_meta, tmp_path, pictures, write_rows):
    entries = {}
    for name in ("a", "b"):
        path = write_rows([row(conversations=talk(name))], f"{name}/train.jsonl")
        entries[name] = {"root": str(pictures), "annotation": str(path)}
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    report = diagnose(tmp_path / "meta.json")
    assert [one.where for one in report.by_code("no_answer")] == ["a/train.jsonl:1", "b/train.jsonl:1"]


def test_nothing_to_check_is_an_exception(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        diagnose(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="expected one of exist, header, decode"):
        diagnose(tmp_path, pictures="all")


def test_only_the_rows_of_a_selection_are_checked(write_rows, pictures):
    data = open_data(write_rows([row(), row(conversations=talk("Q")), picture_row()]), root=pictures)
    assert not diagnose(data).ok
    report = diagnose(data.select([0, 2, 2]))
    assert report.ok and report.stats["rows"] == 2


# many rows -----------------------------------------------------------------------------------------------------------


def test_processes_find_what_one_finds(check_lines):
    lines = [line for line, _ in BAD_ROWS.values()] + mixed_rows(60)
    lines = [line for line in lines for _ in range(20)]
    reports = [check_lines(lines, workers=workers, limit=50) for workers in (1, 2)]
    for report in reports:
        report.stats.pop("seconds")
    assert reports[0].to_dict() == reports[1].to_dict()
    assert reports[0].stats["rows"] == len(lines)


def test_a_script_without_a_guard_is_not_run_again_by_the_processes(tmp_path, write_rows):
    path = write_rows([row(id=number) for number in range(50)])
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\nfrom ivlkit.data.checking.doctor import diagnose\n"
        f"print(diagnose({str(path)!r}, workers=2).stats['good'])\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(ivl.__file__).parents[1])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["once", "50"], done.stderr


def test_many_problems_are_counted_and_all_written(check_lines, tmp_path):
    rows = [row(conversations=talk(f"Q{number}")) for number in range(3000)]
    report = check_lines(rows, limit=5, problems_to=tmp_path / "all.jsonl")
    assert report.counts["no_answer"] == 3000
    assert [problem.where for problem in report.problems] == [f"train.jsonl:{n}" for n in (1, 2, 3, 4, 5)]
    written = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [line["row"] for line in written] == list(range(3000))


# any row -------------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from(
    [
        "<image>",
        "<img>",
        "<|im_end|>",
        "<box>[[1, 2, 3, 4]]</box>",
        "<box>[[",
        "</ref>",
        "[0.1, .2, .3, .4]",
        "a.png",
        "",
    ]
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.lists(TEXTS, max_size=3)
TURNS = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system", "Human"]) | VALUES, "value": TEXTS | VALUES}
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "id": VALUES,
        "image": st.sampled_from(["a.png", "gone\0.png", "../outside.png", "\ud83d", ["a.png", "b.png"]]) | VALUES,
        "width": VALUES,
        "height": VALUES,
        "width_list": st.lists(VALUES, max_size=2),
        "conversations": st.lists(TURNS | VALUES, max_size=4) | VALUES,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS | VALUES, min_size=1, max_size=20))
def test_any_rows_are_good_or_listed_and_never_an_exception(check_lines, tmp_path, pictures, processor, rows):
    lines = [json.dumps(row).encode() for row in rows]
    report = check_lines(lines, limit=1000, problems_to=tmp_path / "all.jsonl")
    assert report.stats["rows"] == report.stats["good"] + report.stats["bad"] == len(rows)
    called_bad = {problem.row for problem in report.problems if problem.level == "error"}
    data = open_data(tmp_path / "train.jsonl", root=pictures)
    refused = refused_by_encoding(data, processor)
    assert called_bad == refused
    assert report._repr_html_().encode() and str(report).encode()
    report.save_json(tmp_path / "report.json")
    mend(data.sources[0])
    (tmp_path / "train.fixed.jsonl").unlink(missing_ok=True)


# the report ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(check_lines):
    text = "<script>alert(1)</script>\u202e $x^2$ " + "y" * 2**20
    rows = [
        picture_row(id=text, image="copy.png", conversations=talk(f"<image>{text}", f" {text}")),
        picture_row(image="<script>.png"),
        picture_row(image="icon.png", conversations=talk("<image>Q", text)),
    ]
    return check_lines(rows, max_length=None)


def test_hostile_text_is_escaped_in_every_page(hostile, tmp_path):
    page = hostile.save_html(tmp_path / "report.html").read_text()
    assert "<script>" not in page and "\u202e" not in page
    assert len(page) < 600_000
    assert "<script>" not in hostile._repr_html_()


def test_a_sample_links_to_its_line(hostile, tmp_path):
    page = hostile.save_html(tmp_path / "report.html").read_text()
    link = page.partition('<a href="#')[2].partition('"')[0]
    assert f'id="{link}"' in page


def test_the_report_is_json_for_programs(hostile, tmp_path):
    told = json.loads(hostile.save_json(tmp_path / "report.json").read_text())
    assert told["ok"] is False
    assert told["levels"] == {level: hostile.count(level) for level in LEVELS}
    assert told["stats"]["rows"] == 3


def test_a_report_and_a_problem_are_readable_as_text(check_lines):
    report = check_lines([row(), row(conversations=talk("Q"))])
    assert str(report).splitlines()[0].endswith("train.jsonl: 2 rows, 1 usable; 1 error, 0 warnings, 0 info")
    assert repr(report.problems[0]) == (
        "train.jsonl:2: error: the row ends with a user turn; expected an answer last; "
        "add it or remove the question [no_answer]"
    )


def test_findings_of_one_kind_are_one_line_with_a_count_and_the_first_places(check_lines):
    lines = [_as_line(row(id=0, conversations=talk(f"Q{number}", f"A{number}"))) + b"\r" for number in range(300)]
    first, crlf, ids = str(check_lines(lines)).splitlines()
    assert first.endswith("300 rows, 300 usable; 0 errors, 0 warnings, 599 info")
    places = "train.jsonl:2, train.jsonl:3, train.jsonl:4, train.jsonl:5, train.jsonl:6, …"
    assert crlf.endswith(f"[crlf] and 299 more: {places}")
    assert ids.startswith("  train.jsonl:2: info: the id of train.jsonl:1; ")
    assert ids.endswith(
        "[duplicate_id] and 298 more: train.jsonl:3, train.jsonl:4, train.jsonl:5, train.jsonl:6, train.jsonl:7, …"
    )
    assert check_lines(lines)._repr_html_().count("the line ends with") == 1
    assert check_lines(lines[:2]).problems[0].where == "train.jsonl:1"


def test_a_fault_has_its_parts_and_its_sentence_and_survives_a_process():
    fault = DataError("no answer", "one last", "add it", where="a.jsonl:3", code="no_answer")
    assert str(fault) == "a.jsonl:3: no answer; expected one last; add it"
    again = pickle.loads(pickle.dumps(fault))
    assert (str(again), again.code, again.where, again.found) == (str(fault), "no_answer", "a.jsonl:3", "no answer")
    assert (again.expected, again.todo) == ("one last", "add it")
    assert str(type(fault)(str(fault))) == str(fault)  # as a data loader raises it again


def test_a_reader_yields_every_fault_of_a_row_and_training_raises_the_first(check_lines, tmp_path, pictures):
    broken = {
        "image": ["gone.png", "../outside.png", 3],
        "clip": 4,
        "conversations": [{"from": "bard"}, {"value": "A"}, 7],
    }
    broken |= {"system": 5}
    two = {"image": ["gone.png", "../outside.png"], "conversations": [*talk("Q"), {"from": "bard", "value": ""}]}
    report = check_lines([broken, two])
    found = {
        place: [one.code for one in report.problems if one.where == place]
        for place in ("train.jsonl:1", "train.jsonl:2")
    }
    assert found == {
        "train.jsonl:1": ["image_field", "bad_turn", "unknown_role", "bad_turn", "unusable"],
        "train.jsonl:2": ["outside_root", "unknown_role", "missing_media"],
    }
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / "train.jsonl", root=pictures)[1]
    assert (caught.value.code, caught.value.where) == ("outside_root", "train.jsonl:2")


def test_check_takes_a_models_name(write_rows):
    report = ivl.check(write_rows([row()]), "nano")
    assert report.ok and report.stats["tokens"]["max"] > 10


def test_a_fault_of_a_named_kind_has_what_its_kind_expects():
    said = "a.jsonl:3: no turns; expected a list of turns, a question and its answer at least; add `conversations`"
    assert str(DataError("no turns", where="a.jsonl:3", code="no_conversations")) == said
    assert str(DataError("a clip", todo="remove it", code="clip")) == "a clip; remove it"


def test_every_kind_is_described():
    for code, kind in KINDS.items():
        assert kind.level in LEVELS and kind.expected and kind.todo, code
    assert BAD == 2 and GOOD == 1


def test_a_converted_row_is_named_by_its_line_in_the_table_too(tmp_path, processor):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\ngone.png,cat\na.png,cat\na.png,nan\n")
    data = ivl.from_csv(tmp_path / "labels.csv", question="What is it?", rejects="list")
    missing, other = diagnose(data, processor).problems
    assert str(missing).startswith("rows.jsonl:2: warning: labels.csv:4: the answer 'nan'; expected an answer; ")
    assert (missing.code, other.code) == ("missing_value", "contradiction")
    assert other.found == "labels.csv:4: another answer than labels.csv:3 gives to the same"
