"""Rows as written → records; every broken row says where, what was found, what was expected, what to do."""

import json
from pathlib import Path

import pytest

from ivlkit.data.rows.records import Record, Turn, Video, parse_line, read_records
from ivlkit.errors import DataError

QUESTION, ANSWER = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}


def row(**fields):
    return {"id": 0, "conversations": [QUESTION, ANSWER]} | fields


def refusal(line, where="train.jsonl:17"):
    with pytest.raises(DataError) as caught:
        parse_line(line if isinstance(line, bytes) else json.dumps(line).encode(), where)
    return str(caught.value)


def test_a_text_row():
    record = parse_line(json.dumps(row(id=7)).encode(), "train.jsonl:1")
    assert record == Record(id=7, turns=(Turn("user", "Q"), Turn("assistant", "A")), where="train.jsonl:1")
    assert (record.question, record.answer) == ("Q", "A")


def test_a_single_picture_without_placeholder_comes_before_the_first_question(turns):
    record = parse_line(json.dumps(row(image="a.png", conversations=turns("Q", "A", "R", "B"))).encode(), "x:1", "pics")
    assert record.images == (Path("pics/a.png"),)
    assert [turn.text for turn in record.turns] == ["<image>\nQ", "A", "R", "B"]


def test_a_single_picture_may_have_its_placeholder_in_a_later_turn(turns):
    conversations = turns("Hello", "Hi", "What is on <image>?", "A cat")
    record = parse_line(json.dumps(row(image="a.png", conversations=conversations)).encode(), "x:1")
    assert [turn.text for turn in record.turns] == ["Hello", "Hi", "What is on <image>?", "A cat"]


def test_several_pictures_are_interleaved_over_the_turns(turns):
    conversations = turns("Image-1: <image>\nQ", "A", "And <image>?", "B")
    record = parse_line(json.dumps(row(image=["a.png", "b.png"], conversations=conversations)).encode(), "x:1", "r")
    assert record.images == (Path("r/a.png"), Path("r/b.png"))


def test_a_list_of_one_picture_is_a_single_picture():
    assert parse_line(json.dumps(row(image=["a.png"])).encode(), "x:1").turns[0].text == "<image>\nQ"


@pytest.mark.parametrize(
    "name", ["/pics/a.png", "../a.png", "b/../../a.png", "/pics/root/../a.png", "/pics/rootless/a"]
)
@pytest.mark.parametrize("field", ["image", "video"])
def test_a_path_that_leaves_the_root_is_refused(name, field):
    with pytest.raises(DataError) as caught:
        parse_line(json.dumps(row(**{field: name})).encode(), "x:1", "/pics/root")
    assert str(caught.value) == (
        f"x:1: {name!r} leaves the folder /pics/root; expected a path inside it; set `root` to a folder that holds the "
        'pictures ("/" allows every absolute path)'
    )


@pytest.mark.parametrize(
    ("root", "name", "path"),
    [
        ("/pics", "/pics/b/a.png", "/pics/b/a.png"),
        ("/", "/pics/a.png", "/pics/a.png"),
        ("/pics", "b/../a.png", "/pics/a.png"),
        ("/pics", "a..b.png", "/pics/a..b.png"),
        ("/pics", "..a.png", "/pics/..a.png"),
    ],
)
def test_a_path_inside_the_root_may_be_written_in_any_way(root, name, path):
    assert parse_line(json.dumps(row(image=name)).encode(), "x:1", root).images == (Path(path),)


def test_a_data_uri_stands_for_itself():
    uri = "data:image/png;base64,AAAA"
    assert parse_line(json.dumps(row(image=uri)).encode(), "x:1", "root").images == (uri,)


def test_a_video_without_placeholder_comes_before_the_first_question(turns):
    record = parse_line(json.dumps(row(video="v/0.mp4", clip=[1, 2.5])).encode(), "x:1", "root")
    assert record.video == Video(Path("root/v/0.mp4"), (1.0, 2.5))
    assert (record.images, record.turns[0].text, record.extra) == ((), "<video>\nQ", {})


def test_a_video_may_be_asked_about_in_a_later_turn(turns):
    conversations = turns("Hello", "Hi", "What happens? <video>", "A")
    record = parse_line(json.dumps(row(video="0.mp4", conversations=conversations)).encode(), "x:1")
    assert [turn.text for turn in record.turns] == ["Hello", "Hi", "What happens? <video>", "A"]


def test_a_video_placeholder_in_other_rows_and_in_answers_is_text(turns):
    record = parse_line(json.dumps(row(image="a.png", conversations=turns("<video> Q", "<video>"))).encode(), "x:1")
    assert [turn.text for turn in record.turns] == ["<image>\n<video> Q", "<video>"]
    record = parse_line(json.dumps(row(video="a.mp4", conversations=turns("Q", "<image> <video>"))).encode(), "x:1")
    assert [turn.text for turn in record.turns] == ["<video>\nQ", "<image> <video>"]


def test_a_placeholder_in_an_answer_is_text(turns):
    record = parse_line(json.dumps(row(image="a.png", conversations=turns("Q", "write <image>"))).encode(), "x:1")
    assert [turn.text for turn in record.turns] == ["<image>\nQ", "write <image>"]


def test_a_placeholder_in_a_row_without_pictures_is_text(turns):
    record = parse_line(json.dumps(row(conversations=turns("What does <image> mean?", "A"))).encode(), "x:1")
    assert record.turns[0].text == "What does <image> mean?"


@pytest.mark.parametrize("nothing", [None, "", []])
def test_no_picture_may_be_written_in_three_ways(nothing):
    assert parse_line(json.dumps(row(image=nothing)).encode(), "x:1").images == ()


def test_a_first_system_turn_is_kept(turns):
    conversations = [{"from": "system", "value": "S"}, *turns("Q", "A")]
    record = parse_line(json.dumps(row(image="a.png", conversations=conversations)).encode(), "x:1")
    assert record.turns == (Turn("system", "S"), Turn("user", "<image>\nQ"), Turn("assistant", "A"))


def test_fields_no_reader_uses_are_kept_beside_the_row():
    record = parse_line(json.dumps(row(image="a.png", width=3, num_digits=2)).encode(), "x:1")
    assert record.extra == {"width": 3, "num_digits": 2}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b'{"id": 1, "conversations": [', "broken JSON"),
        (b'{"id": 1}{"id": 2}', "broken JSON"),
        (b"[" * 100_000, "broken JSON"),
        ("naïve".encode("latin-1"), "not UTF-8 (invalid continuation byte at byte 2); save the file as UTF-8"),
        (b"[1, 2]", "a list; expected a JSON object with `conversations`"),
        (b"null", "a NoneType; expected a JSON object"),
        ({"id": 1}, "no `conversations`; expected a list of turns"),
        (row(conversations=[]), "no `conversations`"),
        (row(conversations="Q"), "no `conversations`"),
        (row(conversations=["Q", "A"]), "turn 1: expected {'from': 'human' or 'gpt', 'value': text}, found 'Q'"),
        (row(conversations=[QUESTION, {"from": "gpt", "value": None}]), "turn 2: expected"),
        (row(conversations=[QUESTION, {"from": "gpt"}]), "turn 2: expected"),
        (
            row(conversations=[{"from": "bot", "value": "Q"}, ANSWER]),
            "turn 1: unknown role 'bot'; expected 'human' or 'gpt'",
        ),
        (row(conversations=[{"from": ["gpt"], "value": "Q"}, ANSWER]), "turn 1: unknown role ['gpt']"),
        (row(conversations=[{"value": "Q"}, ANSWER]), "turn 1: unknown role None"),
        (row(conversations=[QUESTION]), "ends with a user turn; expected an answer last; add it"),
        (row(conversations=[QUESTION, ANSWER, QUESTION]), "ends with a user turn"),
        (row(conversations=[ANSWER, QUESTION, ANSWER]), "turn 1 is assistant, expected user"),
        (row(conversations=[QUESTION, QUESTION, ANSWER]), "turn 2 is user, expected assistant"),
        (
            row(conversations=[{"from": "system", "value": "S"}, ANSWER]),
            "turn 2 is assistant, expected user",
        ),
        (row(conversations=[{"from": "system", "value": "S"}]), "only a system turn; expected a question"),
        (
            row(conversations=[QUESTION, {"from": "system", "value": "S"}, ANSWER]),
            "turn 2 is system, expected assistant",
        ),
        (row(image=3), "`image` is 3; expected a path or a list of paths"),
        (row(image=["a.png", None]), "`image` is ['a.png', None]; expected a path"),
        (row(image=[""]), "`image` is ['']; expected a path"),
        (
            row(image=["a.png", "b.png"]),
            '2 pictures but 0 "<image>" in user turns; expected one for each picture; add or remove placeholders',
        ),
        (
            row(image=["a.png", "b.png"], conversations=[{"from": "human", "value": "<image>"}, ANSWER]),
            '2 pictures but 1 "<image>"',
        ),
        (
            row(image="a.png", conversations=[{"from": "human", "value": "<image><image>"}, ANSWER]),
            '1 pictures but 2 "<image>"',
        ),
        (
            row(
                image=["a.png", "b.png"],
                conversations=[{"from": "human", "value": "<image>"}, ANSWER | {"value": "<image>"}],
            ),
            '2 pictures but 1 "<image>" in user turns',
        ),
        (row(video="a.mp4", image="a.png"), "both `image` and `video`; expected one of them; split the row"),
        (row(video=["a.mp4", "b.mp4"]), "`video` is ['a.mp4', 'b.mp4']; expected one path; split the row"),
        (row(video=3), "`video` is 3; expected one path"),
        (
            row(video="a.mp4", conversations=[{"from": "human", "value": "<video> <video>"}, ANSWER]),
            "2 <video> in user turns; expected one; remove the others",
        ),
        (
            row(video="a.mp4", conversations=[{"from": "human", "value": "<image>"}, ANSWER]),
            "<image> in the row of a video; expected <video>; replace it",
        ),
        (row(video="a.mp4", clip=[2, 1]), "`clip` is [2, 1]; expected [start, end] in seconds, 0 <= start < end"),
        (row(video="a.mp4", clip=[1]), "`clip` is [1]; expected"),
        (row(video="a.mp4", clip="1-2"), "`clip` is '1-2'; expected"),
        (row(video="a.mp4", clip=[True, 2]), "`clip` is [True, 2]; expected"),
        (row(video="a.mp4", clip=[0, float("inf")]), "`clip` is [0, inf]; expected"),
        (row(video="a.mp4", clip=[0, 10**400]), "`clip` is [0, 1000000"),
        (row(image="https://example.org/a.png"), "'https://example.org/a.png' is on another machine; expected a file"),
        (row(image="a\0.png"), "has characters that no file name has; correct it"),
        (rb'{"image": "\ud800.png", "conversations": [{}]}', "has characters that no file name has; correct it"),
    ],
)
def test_a_broken_row_says_where_and_what(broken, message):
    said = refusal(broken)
    assert said.startswith("train.jsonl:17: ")
    assert message in said


def test_text_that_no_tokenizer_can_read_is_refused():
    """A lone surrogate is valid JSON and no character."""
    assert "train.jsonl:17: turn 2" in refusal(
        rb'{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "a\ud800"}]}'
    )


def test_a_very_long_broken_turn_is_quoted_shortly():
    assert len(refusal(row(conversations=["x" * 10_000, "A"]))) < 250


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path):
    path = tmp_path / "train.jsonl"
    line = json.dumps(row(), ensure_ascii=False).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    assert [record.where for record in read_records(path)] == ["train.jsonl:1", "train.jsonl:4"]


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="train.jsonl: no rows; expected one JSON object a line; check that"):
        read_records(path)


def test_the_first_broken_line_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row()) + "\n\n" + '{"id": 1,\n')
    with pytest.raises(DataError, match=r"train\.jsonl:3: broken JSON"):
        read_records(path)


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing.jsonl: can't be read .*; expected a JSONL file; check the path"):
        read_records(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="can't be read .Is a directory."):
        read_records(tmp_path)


def test_records_keep_the_order_of_the_lines(write_rows):
    path = write_rows([row(id=number) for number in (3, 1, 2)])
    assert [record.id for record in read_records(path)] == [3, 1, 2]
