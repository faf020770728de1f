"""Inputs that real users have, two relatives of each: the right value, or a refusal or warning that names it."""

import base64
import io
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from ivlkit.data.checking.doctor import diagnose
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import encode
from ivlkit.errors import DataError


@pytest.fixture
def noise(tmp_path):
    """`noise("a.jpg")` → the bytes of a picture of 120 × 90 px, written under that name."""

    def write(name, seed=0, **options):
        pixels = np.random.default_rng(seed).integers(0, 255, (90, 120, 3), np.uint8)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name, **options)
        return (tmp_path / name).read_bytes()

    return write


@pytest.fixture
def read(tmp_path, write_rows):
    """`read(row)` → its record, or the DataError."""

    def first(row):
        data = open_data(write_rows([row]), root=tmp_path)
        try:
            return data[0]
        except DataError as fault:
            return fault

    return first


@pytest.fixture
def codes(tmp_path, write_rows, processor):
    """`codes(row, …)` → kinds of errors and warnings."""

    def find(*rows):
        report = diagnose(write_rows(rows), processor, root=tmp_path)
        return {problem.code for problem in report.problems if problem.level != "info"}

    return find


def released(answer="A", question="Q", about=(), **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer} | dict(about)]
    return {"conversations": turns} | fields


def openai(*turns, **fields):
    return {"messages": [{"role": role, "content": content} | about for role, content, about in turns]} | fields


ASKED = ("user", "Q", {})


@pytest.mark.parametrize(
    ("turns", "trained"),
    [
        ([ASKED, ("assistant", "one", {"weight": 0}), ASKED, ("assistant", "two", {"weight": 1.0})], "two<|im_end|>"),
        ([ASKED, ("assistant", "one", {}), ASKED, ("assistant", "two", {"loss_scale": 0})], "one<|im_end|>"),
        (
            [("system", "S", {"loss": False}), ASKED, ("assistant", [{"type": "text", "text": "one"}], {"loss": True})],
            "one<|im_end|>",
        ),
    ],
)
def test_only_the_turns_that_are_to_be_trained_are(read, processor, turns, trained):
    example = encode(read(openai(*turns)), processor)
    assert processor.tokenizer.decode(example.labels[example.labels >= 0]) == trained


@pytest.mark.parametrize("about", [{"loss": "false"}, {"weight": "0"}, {"loss_scale": 0.3}])
def test_a_turn_that_is_to_be_weighed_is_refused(read, about):
    assert read(released(about=about)).code == "turn_weight"


@pytest.mark.parametrize("row", [released(system="S"), openai(ASKED, ("assistant", "A", {}), system="S")])
def test_a_system_prompt_of_a_row_is_the_one_that_is_trained_with(read, processor, row):
    text = processor.tokenizer.decode(encode(read(row), processor).input_ids)
    assert text.count("<|im_start|>system\nS<|im_end|>") == text.count("<|im_start|>system") == 1


@pytest.mark.parametrize(
    "fields", [{"tools": '[{"name": "f"}]'}, {"functions": [{"name": "f"}]}, {"audios": ["a.wav"]}]
)
def test_what_the_models_were_not_trained_with_is_refused(read, fields):
    assert read(released(**fields)).code == "refused_field"


@pytest.mark.parametrize(
    ("objects", "question", "answer", "said"),
    [
        (
            {"ref": ["a", "b"], "bbox": [[12, 9, 60, 45]]},
            "<ref-object>, <ref-object>?",
            "<bbox>",
            "[[100, 100, 500, 500]]",
        ),
        ({"bbox": [[0, 0, 0.5, 1]], "bbox_type": "norm1"}, "Left?", "It is <bbox>", "It is <box>[[0, 0, 500, 1000]]"),
    ],
)
def test_objects_stand_in_the_text_as_shares_of_a_thousand(read, noise, objects, question, answer, said):
    noise("a.png")
    record = read(released(answer, question, image="a.png", objects=objects))
    assert said in record.answer and "<bbox>" not in record.answer and "<ref-object>" not in record.question


@pytest.mark.parametrize("objects", [{"bbox": [[1, 2]]}, {"bbox": [[0, 0, 121, 90]]}, {}])
def test_objects_that_do_not_fit_are_refused_or_said(codes, noise, objects):
    noise("a.png")
    assert codes(released("<bbox>", image="a.png", objects=objects)) & {"objects", "foreign_mark"}


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "a.png", "images": "a.png"},
        {"video": "a.gif", "videos": ["a.gif"]},
        {"image": ["a.png"], "images": ["a.png"]},
    ],
)
def test_one_file_in_two_fields_is_refused(read, noise, fields):
    assert read(released(**fields)).code == "refused_field"


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("shape", ["plain", "bytes", "part", "list"])
def test_a_picture_written_into_its_row_is_a_picture(read, noise, processor, kind, shape):
    text = base64.b64encode(noise(f"a.{kind}")).decode()
    row = {
        "plain": released(image=text),
        "bytes": released(image={"bytes": text, "path": None}),
        "list": released(images=[text]),
        "part": openai(
            ("user", [{"type": "image", "image": text}, {"type": "text", "text": "Q"}], {}), ("assistant", "A", {})
        ),
    }[shape]
    written, named = encode(read(row), processor), encode(read(released(image=f"a.{kind}")), processor)
    assert written.tiles.tobytes() == named.tiles.tobytes() and written.num_tiles == named.num_tiles


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_that_ends_early_is_no_video(codes, tmp_path, kind):
    frames = [Image.fromarray(np.random.default_rng(n).integers(0, 255, (60, 80, 3), np.uint8)) for n in range(12)]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], duration=100)
    row = released(question="<video>Q", video=f"a.{kind}")
    assert codes(row) == set()
    whole = (tmp_path / f"a.{kind}").read_bytes()
    (tmp_path / f"a.{kind}").write_bytes(whole[: len(whole) // 2])
    assert "unreadable_media" in codes(row)


@pytest.mark.parametrize("videos", [["f/1.jpg", "f/2.jpg", "f/10.jpg"], [["f/1.jpg", "f/2.jpg", "f/10.jpg"]]])
def test_frames_in_a_list_are_one_video_in_their_order(read, noise, tmp_path, videos):
    for number in (1, 2, 10):
        noise(f"f/{number}.jpg", number)
    record = read(openai(("user", "<video>Q", {}), ("assistant", "A", {}), videos=videos))
    assert [path.name for path in record.video.files] == ["1.jpg", "2.jpg", "10.jpg"]
    assert read(released(question="<video>Q", video=["f/1.jpg", "f/2.jpg"], clip=[0, 1])).video.clip == (0.0, 1.0)


def _progressive(content):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()[:-200]


def _zeros_at_the_end(content):
    return content[: len(content) // 2] + bytes(len(content) // 2)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("a.jpg", _progressive),
        ("a.png", _zeros_at_the_end),
        ("a.png", lambda content: content[:-40]),
        ("a.webp", lambda content: content[:-1]),
    ],
)
def test_a_picture_that_was_not_copied_whole_is_an_error_where_encoding_refuses_it(
    codes, read, noise, tmp_path, processor, name, broken
):
    content = noise(name)
    row = released(question="<image><image>Q", image=["b.png", name])
    noise("b.png", 1)
    assert codes(row) == set()
    (tmp_path / name).write_bytes(broken(content))
    assert codes(row) == {"unreadable_media"}
    with pytest.raises(DataError, match=f"train.jsonl:1: .*{name}"):
        encode(read(row), processor)


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["Straße/für.png", "가나/다.png", "é/é.png"])
def test_a_name_in_another_unicode_form_is_found(read, noise, processor, written, name):
    other = {"NFC": "NFD", "NFD": "NFC"}[written]
    noise(unicodedata.normalize(other, name))
    record = read(released(image=unicodedata.normalize(written, name)))
    assert record.images[0].exists() and encode(record, processor).num_tiles == (13,)


@pytest.mark.parametrize(
    "sets",
    [
        {"a": {"weight": 0.5}, "b": {}},
        {"a": {"weight": 1}, "b": {"weight": 1, "split": "test"}},
        {"a": {"weight": 2, "split": "validation"}},
    ],
)
def test_a_weight_that_shares_with_no_other_is_refused(sets, tmp_path, write_rows):
    path = write_rows([released()])
    entries = {name: {"root": str(tmp_path), "annotation": str(path)} | fields for name, fields in sets.items()}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps(entries))
    with pytest.raises(DataError, match="changes nothing; expected two sets with one at least"):
        open_data(meta, split="all")
    assert [problem.code for problem in diagnose(meta).problems if problem.level == "error"][:1] == ["meta"]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_boxes_on_every_turned_picture_are_said_and_its_size_is_never_mended(codes, noise, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise("a.jpg", exif=exif)
    boxes = released("<box>[[100, 200, 300, 400]]</box>", image="a.jpg")
    assert codes(boxes) == {"turned_picture"}
    swaps = orientation >= 5
    assert codes(released(image="a.jpg", width=120, height=90)) == ({"turned_picture"} if swaps else set())
    assert codes(released(image="a.jpg", width=7, height=9)) == {"declared_size"}


@pytest.mark.parametrize(("name", "is_odd"), [("a.jpg", True), ("a.webp", True), ("b.jpg", False)])
def test_a_picture_whose_rest_was_never_written_is_a_warning(codes, noise, tmp_path, name, is_odd):
    """Its place on the disk was reserved: it has its size, and decodes without an error."""
    content = noise(name)
    if is_odd:
        (tmp_path / name).write_bytes(_zeros_at_the_end(content))
    assert codes(released(image=name)) == ({"zeros_at_end"} if is_odd else set())
