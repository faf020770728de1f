"""Every field that means something is used or refused, in every format a row may have."""

import base64
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ivlkit.data.checking.doctor import diagnose
from ivlkit.data.checking.findings import KINDS
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import encode
from ivlkit.data.importing.convert import convert
from ivlkit.data.importing.tables import choose_columns, row_from_cells
from ivlkit.data.rows.records import Turn, parse_line
from ivlkit.errors import DataError

WHERE = "train.jsonl:17"
FORMATS = ("released", "sharegpt", "openai")


@pytest.fixture
def root(tmp_path, draw_picture):
    """Pictures of 200 × 100 px."""
    for number in range(3):
        draw_picture(200, 100, seed=number).save(tmp_path / f"{number}.png")
    return tmp_path


def talk(name, *texts, about=(), **fields):
    """A row of the format `name`; `about` has fields of the last answer."""
    roles, key, text, turns = {
        "released": (("human", "gpt"), "from", "value", "conversations"),
        "sharegpt": (("user", "assistant"), "role", "content", "conversations"),
        "openai": (("user", "assistant"), "role", "content", "messages"),
    }[name]
    said = [{key: roles[number % 2], text: value} for number, value in enumerate(texts)]
    said[-1] |= dict(about)
    return {turns: said} | fields


def read(row, root="root"):
    return parse_line(json.dumps(row).encode(), WHERE, root)


def refusal(row, root="root"):
    with pytest.raises(DataError) as caught:
        read(row, root)
    assert str(caught.value).startswith(f"{WHERE}: ")
    return str(caught.value).removeprefix(f"{WHERE}: ")


def codes(rows, root, **options):
    """{kind: number} of what the doctor finds in these rows, without what it says of pictures that no row names."""
    path = root / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    counts = diagnose(path, root=root, **options).counts
    return {code: number for code, number in counts.items() if code not in ("unused_files", "tiny_picture")}


# the row


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("media", [{}, {"image": "0.png"}, {"images": ["0.png"]}])
def test_a_rows_system_prompt_is_used(name, media):
    record = read(talk(name, "Q", "A", system="Answer in capitals.", **media))
    assert record.turns[0] == Turn("system", "Answer in capitals.")
    assert [turn.role for turn in record.turns] == ["system", "user", "assistant"]
    assert "system" not in record.extra


@pytest.mark.parametrize("name", FORMATS)
def test_a_system_prompt_that_is_none_or_stands_twice_is_refused(name):
    assert refusal(talk(name, "Q", "A", system=["S"])).startswith("`system` is ['S']; expected a text")
    row = talk(name, "Q", "A", system="S")
    turns = row.get("conversations", row.get("messages"))
    turns.insert(0, {key: "system" for key in turns[0]})
    assert refusal(row).startswith("both `system` and a system turn; expected one of them")


@pytest.mark.parametrize("name", FORMATS)
def test_tools_and_sound_are_refused(name):
    for field in ("tools", "functions"):
        assert refusal(talk(name, "Q", "A", **{field: [1]})).startswith(f"`{field}`; these models were trained without")
    assert refusal(talk(name, "Q", "A", audios=["a.wav"])).startswith("`audios`; these models hear nothing")
    assert read(talk(name, "Q", "A", tools=[], audios=None)).extra == {}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image": "0.png", "images": ["0.png"]}, "`image` and `images` both name '0.png'; expected one of them"),
        ({"image": ["1.png", "0.png"], "images": ["0.png"]}, "`image` and `images` both name '0.png'"),
        ({"video": "a.mp4", "videos": ["a.mp4"]}, "`video` and `videos` both name 'a.mp4'"),
    ],
)
def test_two_fields_that_name_one_file_are_refused(name, fields, said):
    assert refusal(talk(name, "<image>Q", "A", **fields)).startswith(said)


@pytest.mark.parametrize("name", FORMATS)
def test_pictures_in_both_fields_are_all_read(name):
    record = read(talk(name, "<image><image>Q", "A", image="1.png", images=["0.png"]))
    assert record.images == (Path("root/0.png"), Path("root/1.png"))


def test_turns_under_two_names_are_refused():
    row = talk("openai", "Q", "A") | talk("released", "Q", "B")
    assert refusal(row).startswith("both `conversations` and `messages`; expected one of them")


def test_a_column_that_is_the_answer_is_used_and_a_history_is_said(root):
    cells = {"image": "0.png", "query": "Q", "weight": 1.5, "n": 2, "history": [["Q0", "A0"]]}
    for answer in ("weight", ["weight", "n"]):
        columns = choose_columns(list(cells), "a", question="query", answer=answer)
        assert codes([row_from_cells({**cells, "history": None}, columns, "a")], root) == {}
        assert codes([row_from_cells(cells, columns, "a")], root) == {"unused_field": 1}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("field", ["weight", "loss_scale", "history", "rejected_response", "query"])
def test_a_field_that_only_other_kits_read_is_a_warning(name, field, root):
    assert codes([talk(name, "Q", "A", **{field: "x"})], root) == {"unused_field": 1}
    assert codes([talk(name, "Q", "A", **{field: None})], root) == {}


# the turn


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("about", [{"loss": False}, {"weight": 0}, {"loss_scale": 0.0}, {"train": False}])
def test_an_answer_that_is_not_to_be_trained_is_read_and_not_trained(name, about, processor):
    row = talk(name, "Q", "green", "Sure?", "red")
    turns = row.get("conversations", row.get("messages"))
    turns[1] |= about
    record = read(row)
    assert [turn.trained for turn in record.turns] == [True, False, True, True]
    example, whole = encode(record, processor), encode(read(talk(name, "Q", "green", "Sure?", "red")), processor)
    assert example.input_ids.tolist() == whole.input_ids.tolist()
    trained = processor.tokenizer.decode(example.labels[example.labels >= 0])
    assert trained == "red<|im_end|>"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("about", [{"loss": True}, {"weight": 1}, {"loss_scale": 1.0}, {"loss": None}])
def test_an_answer_that_is_to_be_trained_is_as_any_other(name, about):
    assert read(talk(name, "Q", "A", about=about)) == read(talk(name, "Q", "A"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [0.5, 2, -1, "no", [], {}])
def test_a_turn_that_weighs_something_else_is_refused(name, value):
    said = refusal(talk(name, "Q", "A", about={"weight": value}))
    assert said.startswith(f"turn 2: `weight` is {value!r}; expected true or false (1 or 0)")


def test_a_weight_of_a_question_or_two_that_disagree_are_refused():
    row = talk("released", "Q", "A", about={"loss": True, "weight": 0})
    assert refusal(row).startswith("turn 2: `loss` True and `weight` 0; expected one of them")
    row["conversations"][0]["loss"] = True
    assert refusal(row).startswith("turn 1: `loss` is True; expected it in answers only; remove it")
    row = talk("released", "Q", "A")
    row["conversations"][0]["loss"] = False
    assert read(row).turns[1].trained


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_which_nothing_is_trained_is_an_error(name, root, processor):
    rows = [talk(name, "Q", "A", about={"loss": False})]
    path = root / "train.jsonl"
    path.write_text(json.dumps(rows[0]))
    assert diagnose(path, processor).by_code("no_supervised_token")[0].where == "train.jsonl:1"
    with pytest.raises(DataError, match="train.jsonl:17: no supervised token"):
        encode(read(rows[0]), processor)


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_turn_has_beside_its_text_is_refused_or_said(name, root):
    assert "a tool call; these models were trained without" in refusal(talk(name, "Q", "A", about={"tool_calls": [1]}))
    assert "`images` of a turn; name it in the row" in refusal(talk(name, "Q", "A", about={"images": ["0.png"]}))
    assert codes([talk(name, "Q", "A", about={"reasoning_content": "Hm."})], root) == {"unused_field": 1}


# objects


def found(text, objects, root, images=("0.png",)):
    """The texts of a row with `objects`, after the pictures."""
    question = "<image>" * len(images) + text
    return read(talk("openai", question, "<bbox>", images=list(images), objects=objects), root).turns


def test_names_and_boxes_are_filled_into_the_text(root):
    objects = {"ref": ["block"], "bbox": [[50, 20, 100, 80]]}
    turns = found("Find <ref-object>", objects, root)
    assert [turn.text for turn in turns] == [
        "<image>Find <ref>block</ref>",
        "<box>[[250, 200, 500, 800]]</box>",  # of 200 × 100 px
    ]
    shares = {"ref": ["block"], "bbox": [[0.25, 0.2, 0.5, 0.8]], "bbox_type": "norm1"}
    assert found("Find <ref-object>", shares, root) == turns


def test_each_box_is_a_share_of_its_own_picture(root, draw_picture):
    draw_picture(400, 50).save(root / "wide.png")
    objects = {"bbox": [[100, 10, 200, 20], [20, 10, 40, 20]], "image_id": [1, 0]}
    turns = found("<bbox> and?", objects, root, images=("0.png", "wide.png"))
    assert turns[0].text.endswith("<box>[[250, 200, 500, 400]]</box> and?")
    assert turns[1].text == "<box>[[100, 100, 200, 200]]</box>"


@pytest.mark.parametrize("name", FORMATS)
def test_objects_are_read_in_every_format_and_kept_by_conversion(name, root):
    row = talk(name, "<image>Find <ref-object>", "<bbox>", image="0.png", id=1)
    row["objects"] = {"ref": ["block"], "bbox": [[50, 20, 100, 80]]}
    assert read(row, root).answer == "<box>[[250, 200, 500, 800]]</box>"
    (root / "rows.jsonl").write_text(json.dumps(row | {"system": "S"}))
    convert(root / "rows.jsonl", root / "out", shares={"train": 1.0})
    (line,) = (root / "out" / "train.jsonl").read_bytes().splitlines()
    record = parse_line(line, WHERE, root)
    assert (record.answer, record.turns[0]) == ("<box>[[250, 200, 500, 800]]</box>", Turn("system", "S"))


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([1], "`objects` is [1]; expected"),
        ({"ref": "block"}, "`objects` is {'ref': 'block'}; expected"),
        ({"bbox": [[1, 2, 3, 4]]}, "0 in `ref` of `objects` but 1 <ref-object>; expected one for each"),
        ({"ref": ["block"]}, "0 in `bbox` of `objects` but 1 <bbox>; expected one for each"),
        ({"ref": ["a"], "bbox": [[1, 2, 3]]}, "the box [1, 2, 3]; expected [x1, y1, x2, y2]"),
        ({"ref": ["a"], "bbox": [[1, 2, 300, 4]]}, "the box [1, 2, 300, 4]; expected x1 < x2 and y1 < y2 inside 200"),
        ({"ref": ["a"], "bbox": [[9, 2, 3, 4]]}, "the box [9, 2, 3, 4]; expected x1 < x2"),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "bbox_type": "yolo"}, "`bbox_type` is 'yolo'; expected real"),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "image_id": [1]}, "1 boxes of 1 pictures, `image_id` is [1]"),
        ({"ref": [3], "bbox": [[1, 2, 3, 4]]}, "`ref` of `objects` is [3]; expected names"),
    ],
)
def test_objects_that_can_not_be_filled_in_are_refused(objects, said, root):
    row = talk("openai", "<image>Find <ref-object>", "<bbox>", images=["0.png"], objects=objects)
    assert refusal(row, root).startswith(said)


@pytest.mark.parametrize("orientation", [2, 3, 6])  # mirrored, upside down, on its side
def test_a_box_in_pixels_of_a_picture_that_is_turned_is_refused(orientation, root, draw_picture):
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw_picture(200, 100).save(root / "phone.jpg", exif=exif)
    row = talk("openai", "<image>Where?", "<bbox>", images=["phone.jpg"], objects={"bbox": [[1, 2, 3, 4]]})
    assert "which its EXIF turns or mirrors; expected a picture that is stored upright" in refusal(row, root)


# pictures and videos


@pytest.mark.parametrize("videos", [[["0.png", "1.png", "2.png"]], ["0.png", "1.png", "2.png"]])
def test_a_list_of_frames_is_one_video(videos, root, processor):
    record = read(talk("openai", "<video>Where?", "right", videos=videos), root)
    assert record.video.files == tuple(root / f"{number}.png" for number in range(3))
    example, single = (
        encode(record, processor),
        encode(read(talk("openai", "Q", "A", images=["1.png"]), root), processor),
    )
    assert example.num_tiles == (1, 1, 1)
    assert example.tiles.shape[1:] == single.tiles.shape[1:]
    row = talk("released", "<video>Where?", "right", video=["0.png", "1.png", "2.png"])
    assert read(row, root) == record
    (root / "rows.jsonl").write_text(json.dumps(row))
    convert(root / "rows.jsonl", root / "out", shares={"train": 1.0})
    (line,) = (root / "out" / "train.jsonl").read_bytes().splitlines()
    assert parse_line(line, WHERE, root).video == record.video


def test_a_frame_that_is_missing_is_named(root, processor):
    row = talk("openai", "<video>Where?", "right", videos=[["0.png", "gone.png"]])
    assert codes([row], root) == {"missing_media": 1}
    with pytest.raises(DataError, match="gone.png does not exist"):
        encode(read(row, root), processor)
    assert "the first of a list of frames, which have no times; remove `clip`" in str(
        pytest.raises(DataError, encode, read(row | {"videos": [["0.png", "1.png"]], "clip": [0, 1]}, root), processor)
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "GIF"])
def test_base64_in_place_of_a_path_is_a_picture(name, suffix, root, processor):
    Image.open(root / "0.png").save(root / "0.bin", format=suffix)
    text = base64.b64encode((root / "0.bin").read_bytes()).decode()
    expected = encode(read(talk(name, "<image>Q", "A", image=str(root / "0.bin")), "/"), processor).tiles.tolist()
    for image in (text, {"bytes": text, "path": "x.png"}, f"data:image/png;base64,{text}"):
        row = talk(name, "<image>Q", "A", image=image)
        assert encode(read(row, root), processor).tiles.tolist() == expected
        assert codes([row], root) == {}


def test_a_picture_that_has_a_path_and_no_bytes_is_the_file(root):
    row = talk("released", "<image>Q", "A", image={"bytes": None, "path": "0.png"})
    assert read(row, root).images == (root / "0.png",)


@pytest.mark.parametrize("image", ["iVBORw0KGgo=", "iVBORw0KGgo" + "A" * 89, "/9j/4AAQSkZJRgABAQAAAQ=="])
def test_base64_that_is_no_picture_is_an_error_without_a_model_too(image, root, processor):
    row = talk("released", "<image>Q", "A", image=image)
    assert codes([row], root) == {"unreadable_media": 1}
    with pytest.raises(DataError, match=f"^{WHERE}: (its data|a data URI)"):
        encode(read(row, root), processor)


@pytest.mark.parametrize(("written", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_unicode_form_is_found(written, on_disk, root, processor):
    folder = root / unicodedata.normalize(on_disk, "Café")
    folder.mkdir()
    (folder / unicodedata.normalize(written, "Grün.png")).write_bytes((root / "0.png").read_bytes())
    (folder / unicodedata.normalize(on_disk, "Übung.png")).write_bytes((root / "1.png").read_bytes())
    for name in ("Café/Grün.png", "Café/Übung.png"):
        row = talk("released", "<image>Q", "A", image=unicodedata.normalize(written, name))
        assert codes([row], root) == {}
        assert len(encode(read(row, root), processor).tiles)
    assert codes([talk("released", "<image>Q", "A", image="Café/Ä.png")], root) == {"missing_media": 1}
    (folder / "rows.jsonl").write_text(json.dumps(talk("released", "<image>Q", "A", image="0.png")))
    (folder / "0.png").write_bytes((root / "0.png").read_bytes())
    name = unicodedata.normalize(written, "Café")
    entry = {"root": str(root / name), "annotation": f"{name}/rows.jsonl"}
    (root / "meta.json").write_text(json.dumps({"a": entry}, ensure_ascii=False))
    assert diagnose(root / "meta.json").ok and open_data(root / "meta.json")[0].images == (folder / "0.png",)
    (root / "labels.csv").write_text(f"image,question,answer\n{unicodedata.normalize(written, 'Café/Übung.png')},Q,A\n")
    assert convert(root / "labels.csv", root / "out", shares={"train": 1.0}).rows == {"train": 1}


# marks of other models


@pytest.mark.parametrize(
    "mark",
    [
        "<|image_pad|>",
        "<IMAGE>",
        "<|box_start|>",
        "<loc0001>",
        "<|vision_start|>",
        "<|object_ref_start|>",
        "<|image_1|>",
    ]
    + [
        "<image_soft_token>",
        "<bbox>",
        "<ref-object>",
        "<image_1>",
        "<img1>",
        "<|video_pad|>",
        "<ImageHere>",
        "<|image|>",
    ],
)
def test_a_mark_of_another_model_is_a_warning_that_names_ours(mark, root):
    path = root / "train.jsonl"
    path.write_text(json.dumps(talk("released", f"<image>\n{mark}Q", "A", image="0.png")))
    (problem,) = diagnose(path, root=root).by_code("foreign_mark")
    assert problem.found.startswith(f"{mark} in a turn of the user") and "<image>" in problem.expected


@pytest.mark.parametrize("text", ["a < b", "<b>bold</b>", "<image>", "<video>", "<div>", "x<loc>", "<imagery>"])
def test_other_words_in_angles_are_none(text, root):
    assert "foreign_mark" not in codes([talk("released", text, "A", image="0.png")], root)


# any row


TEXTS = st.sampled_from(
    ["Q", "", "<image>", "<image>Q", "<video>", "<bbox>", "<ref-object>", "<IMAGE>", "0.png", "\ud83d"]
)
SMALL = st.sampled_from([None, True, False, 0, 1, 0.5, "", "x", [], {}, [1], {"a": 1}])
FILES = st.sampled_from(
    ["0.png", "gone.png", "../0.png", "a\0", "é.png", "iVBORw0KGgo=", "data:,", "", "http://x/a.png"]
)
MEDIA = FILES | st.lists(FILES | SMALL, max_size=3) | st.lists(st.lists(FILES, max_size=2), max_size=2) | SMALL
ROLES = st.sampled_from(["human", "gpt", "user", "assistant", "system", "tool", "chatgpt", None])
ABOUT = {
    name: SMALL
    for name in ("loss", "weight", "loss_scale", "train", "tool_calls", "images", "reasoning_content", "name")
}
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image", "video", "sound"])}, optional={"text": TEXTS, "image": FILES}
    ),
    max_size=2,
)
TURNS = st.one_of(
    st.fixed_dictionaries({"from": ROLES, "value": TEXTS | SMALL}, optional=ABOUT),
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS | PARTS | SMALL}, optional=ABOUT),
)
PAIRS = st.tuples(TEXTS, TEXTS, st.fixed_dictionaries({}, optional=ABOUT)).map(
    lambda said: [{"from": "human", "value": said[0]}, {"from": "gpt", "value": said[1]} | said[2]]
)
BOXES = st.lists(st.just([1, 2, 30, 40]) | st.lists(st.integers(-5, 300), max_size=4) | SMALL, max_size=2)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={"ref": st.lists(TEXTS, max_size=2) | SMALL, "bbox": BOXES | SMALL, "bbox_type": SMALL, "image_id": SMALL},
)
ROWS = st.fixed_dictionaries(
    {"conversations": PAIRS | PAIRS | st.lists(TURNS, max_size=3) | SMALL},
    optional={
        **dict.fromkeys(("image", "images", "video", "videos"), MEDIA),
        **dict.fromkeys(("clip", "system", "tools", "history", "weight", "width", "audios"), SMALL),
        "messages": st.lists(TURNS, max_size=3) | SMALL,
        "objects": OBJECTS | SMALL,
    },
)
ANY_ROWS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ANY_ROWS
@given(rows=st.lists(ROWS, min_size=1, max_size=15))
def test_an_error_is_exactly_what_encoding_refuses_in_every_format(rows, root, processor):
    path = root / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    report = diagnose(path, processor, root=root, limit=1000, max_length=2000)
    refused, data = set(), open_data(path, root=root)
    for number in range(len(data)):
        try:
            encode(data[number], processor, max_length=2000)
        except DataError as fault:
            assert str(fault).startswith(f"train.jsonl:{number + 1}: ") and fault.where == f"train.jsonl:{number + 1}"
            refused.add(number)
    assert {problem.row for problem in report.problems if problem.level == "error"} == refused
    assert report.stats["rows"] == report.stats["good"] + len(refused) == len(rows)
    assert {problem.code for problem in report.problems} <= set(KINDS)


@ANY_ROWS
@given(rows=st.lists(ROWS, min_size=1, max_size=15))
def test_rows_in_are_rows_out_and_rejects_and_what_is_written_can_be_trained(rows, root, processor):
    path, out = root / "rows.jsonl", root / "out"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, talk("released", "Q", "A")]))
    done = convert(path, out, shares={"train": 1.0})
    assert sum(done.rows.values()) + done.rejected == len(rows) + 1
    written = (out / "train.jsonl").read_bytes().splitlines()
    rejected = (out / "rejects.jsonl").read_bytes().splitlines() if done.rejected else []
    places = [json.loads(line)["source"] for line in written] + [json.loads(line)["where"] for line in rejected]
    assert sorted(places) == sorted(f"rows.jsonl:{number}" for number in range(1, len(rows) + 2))
    assert len(open_data(done.meta)) == len([read for read in open_data(done.meta)]) == len(written)
