"""Every format a row may have comes out as the released row, or says what it holds that has no place there."""

import json
from pathlib import Path

import numpy as np
import pytest

from ivlkit.data.rows.formats import FORMATS, detect_format, release
from ivlkit.data.rows.records import Turn, parse_line
from ivlkit.errors import DataError, first_raised

WHERE = "train.jsonl:17"


def as_released(row, where, *, format=None):
    return first_raised(release(row, format=format), where)


def message(role, content):
    return {"role": role, "content": content}


def part(kind, value):
    return {"type": kind, kind: value}


def read(row, **options):
    return parse_line(json.dumps(row).encode(), WHERE, "root", **options)


def refusal(row, **options):
    with pytest.raises(DataError) as caught:
        read(row, **options)
    assert str(caught.value).startswith(WHERE)
    return str(caught.value)


HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"conversations": [HUMAN, GPT]}, "released"),
        ({"image": "a.png", "conversations": [HUMAN, GPT], "system": "S"}, "released"),
        ({"video": "a.mp4", "conversations": [HUMAN, GPT]}, "released"),
        ({"conversations": [HUMAN, GPT], "images": ["a.png"]}, "sharegpt"),
        ({"conversations": [HUMAN, GPT], "system": "S"}, "sharegpt"),
        ({"conversations": [message("user", "Q"), message("assistant", "A")]}, "sharegpt"),
        ({"messages": [HUMAN, GPT]}, "sharegpt"),
        ({"messages": [message("user", "Q"), message("assistant", "A")]}, "openai"),
        ({"id": 1}, "released"),
        ({"conversations": "Q"}, "released"),
        ({"messages": []}, "sharegpt"),
        ({"messages": 3}, "released"),
        ({"conversations": [HUMAN, GPT], "image": None, "images": ["a.png"]}, "sharegpt"),
        ({"conversations": [HUMAN, GPT], "image": "", "video": None, "system": "S"}, "sharegpt"),
        ({"messages": [message("user", "Q"), message("assistant", "A")], "conversations": None}, "openai"),
        ({"messages": [HUMAN, GPT], "conversations": None}, "sharegpt"),
    ],
)
def test_the_format_of_a_row_is_detected(row, name):
    assert detect_format(row) == name


def test_a_format_that_is_not_there_is_refused():
    assert sorted(FORMATS) == ["llava", "openai", "released", "sharegpt"]
    assert "format 'alpaca'; expected one of released, llava, sharegpt, openai" in refusal({}, format="alpaca")


def test_llavas_rows_are_released_rows():
    row = {"id": "7", "image": "coco/a.jpg", "model": "", "conversations": [HUMAN, GPT]}
    assert as_released(row, WHERE, format="llava") == row


def test_sharegpt_with_pictures_and_a_system_prompt():
    record = read(
        {
            "id": 4,
            "images": ["a.png", "b.png"],
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "<image><image>Q"}, {"from": "chatgpt", "value": "A"}],
            "source": "web",
        }
    )
    assert record.turns == (Turn("system", "Be brief."), Turn("user", "<image><image>Q"), Turn("assistant", "A"))
    assert record.images == (Path("root/a.png"), Path("root/b.png"))
    assert (record.id, record.extra) == (4, {"source": "web"})


def test_sharegpt_with_roles_and_contents():
    row = {"messages": [message("user", "Q"), message("assistant", "A")], "images": ["a.png"]}
    assert read(row, format="sharegpt") == read(row)
    assert read(row).turns[0].text == "<image>\nQ"


def test_an_empty_field_hides_neither_pictures_nor_system_prompt():
    row = {"image": None, "video": None, "images": ["a.png"], "system": "S", "conversations": [HUMAN, GPT]}
    record = read(row)
    assert record.images == (Path("root/a.png"),)
    assert record.turns[:2] == (Turn("system", "S"), Turn("user", "<image>\nQ"))
    row = {"image": "", "videos": ["a.mp4"], "conversations": None, "messages": [HUMAN, GPT]}
    assert read(row).video.path == Path("root/a.mp4")


def test_sharegpt_with_a_video():
    row = {"conversations": [HUMAN, GPT], "videos": ["a.mp4"]}
    assert (read(row).video.path, read(row).turns[0].text) == (Path("root/a.mp4"), "<video>\nQ")
    assert "2 videos; expected one; split the row" in refusal(row | {"videos": ["a.mp4", "b.mp4"]})


@pytest.mark.parametrize("role", ["function_call", "observation", "tool", "narrator", None])
def test_sharegpts_other_roles_are_named(role):
    row = {"images": [], "conversations": [{"from": role, "value": "Q"}, GPT]}
    assert f"turn 1: role {role!r}; expected one of human, user, gpt, assistant, chatgpt" in refusal(row)


@pytest.mark.parametrize("name", ["sharegpt", "openai"])
def test_tools_are_named(name):
    assert "`tools`; these models were trained without" in refusal({"tools": "[…]", "messages": [1]}, format=name)


@pytest.mark.parametrize("name", ["sharegpt", "openai"])
def test_rows_without_turns_are_refused(name):
    for turns in ([], "Q", None):
        assert "expected a list of" in refusal({"messages": turns}, format=name)


def test_openai_parts_stand_where_their_pictures_go():
    question = [
        part("text", "Compare"),
        part("image_url", {"url": "a.png", "detail": "low"}),
        part("text", "with"),
        part("image_url", "b.png"),
    ]
    record = read({"messages": [message("system", "S"), message("user", question), message("assistant", "A")]})
    assert record.turns == (
        Turn("system", "S"),
        Turn("user", "Compare\n<image>\nwith\n<image>"),
        Turn("assistant", "A"),
    )
    assert record.images == (Path("root/a.png"), Path("root/b.png"))


def test_openai_pictures_may_come_in_later_messages():
    messages = [
        message("user", "Hi"),
        message("assistant", "Hello"),
        message("user", [part("image", "a.png"), part("text", "Q")]),
        message("assistant", [part("text", "A")]),
    ]
    record = read({"messages": messages})
    assert [turn.text for turn in record.turns] == ["Hi", "Hello", "<image>\nQ", "A"]


def test_openai_takes_data_uris_and_file_addresses():
    uri = "data:image/png;base64,AAAA"
    messages = [
        message("user", [part("image_url", {"url": uri}), part("image_url", {"url": "file:///root/a%20b.png"})]),
        message("assistant", "A"),
    ]
    record = parse_line(json.dumps({"messages": messages}).encode(), WHERE, "/root")
    assert record.images == (uri, Path("/root/a b.png"))


def test_openai_parts_without_a_picture_take_the_rows_own_in_order():
    question = [{"type": "image"}, {"type": "image"}, part("text", "Q")]
    row = {"messages": [message("user", question), message("assistant", "A")], "images": ["a.png", "b.png"]}
    assert read(row).images == (Path("root/a.png"), Path("root/b.png"))
    assert "2 parts without a image of their own, 1 in the row's `images`" in refusal(row | {"images": ["a.png"]})


def test_openai_video_part():
    row = {"messages": [message("user", [part("video", "a.mp4"), part("text", "Q")]), message("assistant", "A")]}
    assert (read(row).video.path, read(row).turns[0].text) == (Path("root/a.mp4"), "<video>\nQ")


def test_an_openai_picture_without_an_address_is_not_lost():
    row = {"messages": [message("user", [part("image_url", {"url": ""})]), message("assistant", "A")]}
    assert "1 parts without a image of their own, 0 in the row's `images`" in refusal(row)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([message("user", [part("image", "http://x.org/a.png")]), message("assistant", "A")], "is on another machine"),
        ([message("tool", "3"), message("assistant", "A")], "message 1: role 'tool'; expected one of user, assistant"),
        ([message("user", "Q"), message("assistant", "A") | {"tool_calls": [1]}], "message 2: a tool call"),
        ([message("user", [part("input_audio", "x")]), message("assistant", "A")], "a part of type 'input_audio'"),
        ([message("user", [3]), message("assistant", "A")], "a part of type None; expected text, image_url"),
        ([message("user", [{"type": "text"}]), message("assistant", "A")], "a text part without `text`"),
        ([message("user", "Q"), message("assistant", [part("image", "a.png")])], "a picture in a message of assistant"),
        ([message("user", "Q"), message("assistant", None)], "turn 2: expected {'from': 'human' or 'gpt',"),
        ([message("user", "Q"), 3], "message 2: a int; expected"),
        (
            [message("user", [part("image", "a.png"), part("text", "<image>")]), message("assistant", "A")],
            '1 pictures but 2 "<image>"',
        ),
    ],
)
def test_what_openai_messages_hold_that_has_no_place_is_named(messages, said):
    assert said in refusal({"messages": messages})


def test_a_system_message_takes_the_models_own_place(processor):
    from ivlkit.data.encode import encode

    record = read({"messages": [message("developer", "Be a cat."), message("user", "Q"), message("assistant", "A")]})
    text = processor.tokenizer.decode(encode(record, processor).input_ids)
    assert text.startswith("<s><|im_start|>system\nBe a cat.<|im_end|><|im_start|>user\nQ")


def test_a_row_in_memory_may_hold_arrays_in_any_field():
    pixels = np.zeros((4, 4, 3), np.uint8)
    row = {"image": "a.png", "images": [pixels, pixels], "conversations": [HUMAN, GPT], "audio": pixels[:0, 0, 0]}
    with pytest.raises(DataError, match="^train.jsonl:17: `audio`; these models hear nothing"):
        as_released(row, WHERE)
    released = as_released({key: value for key, value in row.items() if key != "audio"}, WHERE)
    assert [type(image) for image in released["image"]] == [np.ndarray, np.ndarray, str]
