"""What labelled photos have: spellings, contradictions, burst shots, 12 bits, boxes under EXIF, other scripts."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ivlkit.cli import main
from ivlkit.data.checking import overview
from ivlkit.data.checking.doctor import diagnose
from ivlkit.data.checking.spellings import common_spellings, spelling_key
from ivlkit.data.rows.media import AS_REFERENCE, image_size, open_image


@pytest.fixture
def found(tmp_path, write_rows, processor):
    """`found([row, …], "kind", …)` → what is found of these kinds, as (where, found)."""

    def find(rows, *codes, name="train.jsonl", model=processor, **options):
        report = diagnose(write_rows(rows, name), model, root=tmp_path, **options)
        return [(one.where, one.found) for code in codes for one in report.by_code(code)]

    return find


def row(question, answer, *images, **fields):
    talk = [{"from": "human", "value": "<image>" * len(images) + question}, {"from": "gpt", "value": answer}]
    return {"conversations": talk} | ({"image": list(images)} if images else {}) | fields


# spellings -----------------------------------------------------------------------------------------------------------


def test_answers_that_differ_only_in_spelling_are_one_finding_with_counts(found):
    answers = ["Yes"] * 20 + ["yes"] * 3 + ["YES", "no", "no", "Yes, it is"]
    rows = [row(f"Q{number}", answer) for number, answer in enumerate(answers)]
    said = "'Yes' 20, 'yes' 3, 'YES' 1: answers that differ only in case, space, full stop or Unicode form"
    assert found(rows, "answer_spelling") == [("train.jsonl:21", said)]
    assert found(rows[:20] + rows[24:], "answer_spelling") == []


@pytest.mark.parametrize(
    ("common", "other", "said"),
    [
        ("a dog", "a  dog", "'a dog' 2, 'a  dog' 1"),
        ("A dog.", "A dog", "'A dog.' 2, 'A dog' 1"),
        ("caf\u00e9", "cafe\u0301", r"'caf\xe9' 2, 'cafe\u0301' 1"),
        ("狗", "狗。", "'狗' 2, '狗。' 1"),
        ("Straße", "STRASSE", "'Straße' 2, 'STRASSE' 1"),
    ],
)
def test_each_difference_of_spelling_is_found_and_mended(found, common, other, said, tmp_path, write_rows):
    rows = [row("Q0", common), row("Q1", other), row("Q2", common), row("Q3", "else")]
    ((where, told),) = found(rows, "answer_spelling")
    assert where == "train.jsonl:2" and told.startswith(f"{said}: ")
    main(["check", str(tmp_path / "train.jsonl"), "--fix"])
    lines = (tmp_path / "train.fixed.jsonl").read_text().splitlines()
    assert [json.loads(line)["conversations"][1]["value"] for line in lines] == [common] * 3 + ["else"]
    assert (tmp_path / "train.jsonl").read_text() == "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)


@pytest.mark.parametrize("pair", [("10", "1.0"), ("m²", "m2"), ("yes", "yes!"), ("", "."), ("x" * 101, "X" * 101)])
def test_other_answers_are_no_spellings_of_one(pair):
    assert spelling_key(pair[0]) != spelling_key(pair[1])


def test_of_two_spellings_that_are_equally_common_none_is_right():
    assert common_spellings(["a", "A", "b", "B", "B"]) == {"b": "B"}
    assert common_spellings(["a", "a", "A", "A", "A."]) == {}


def test_spellings_are_counted_over_all_sets_of_a_meta_file(tmp_path, write_rows):
    sets = {"a": [row("Q1", "Yes"), row("Q2", "Yes")], "b": [row("Q3", "yes")]}
    entries = {
        name: {"root": str(tmp_path), "annotation": str(write_rows(rows, f"{name}.jsonl"))}
        for name, rows in sets.items()
    }
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    main(["check", str(tmp_path / "meta.json"), "--fix"])
    assert json.loads((tmp_path / "b.fixed.jsonl").read_text()) == row("Q3", "Yes")
    assert not (tmp_path / "a.fixed.jsonl").exists()


# contradictions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path):
    """`photo("a.jpg", 0)` → a picture of smooth noise of that seed in the test's folder."""

    def draw(name, seed=0, size=(320, 240), **options):
        small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(tmp_path / name, **options)
        return tmp_path / name

    return draw


def test_contradicting_answers_to_one_picture_are_a_warning_also_under_another_name(found, photo, tmp_path):
    photo("a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    photo("c.png", 1)
    rows = [row("Broken?", "no", "a.png"), row("Broken?", "yes", "b.png"), row("Broken?", "yes", "c.png")]
    said = [("train.jsonl:2", "another answer than train.jsonl:1 gives to the same")]
    assert found(rows, "contradiction") == said
    assert diagnose(tmp_path / "train.jsonl").count("warning") == 1
    assert found([rows[0], row("Broken?", "No.", "b.png")], "contradiction", "duplicate_row") == []
    assert found([rows[0], row("Broken?", "no", "b.png")], "contradiction", "duplicate_row") == [
        ("train.jsonl:2", "the same as train.jsonl:1")
    ]


def test_pictures_in_another_order_are_another_question(found, photo):
    photo("a.png"), photo("b.png", 1)
    rows = [row("Which is first?", "a", "a.png", "b.png"), row("Which is first?", "b", "b.png", "a.png")]
    assert found(rows, "contradiction") == []


def test_pictures_inside_rows_are_told_apart(found, photo):
    import base64

    uris = [f"data:image/png;base64,{base64.b64encode(photo('a.png', seed).read_bytes()).decode()}" for seed in (0, 1)]
    assert found([row("Q", "a", uris[0]), row("Q", "b", uris[1])], "contradiction") == []
    assert len(found([row("Q", "a", uris[0]), row("Q", "b", uris[0])], "contradiction")) == 1


# alike ---------------------------------------------------------------------------------------------------------------


def test_burst_shots_are_a_warning_with_the_first_places(found, photo):
    photo("0.png"), photo("1.jpg", quality=60), photo("2.png", size=(240, 180)), photo("3.png", 1)
    rows = [row(f"Q{number}", f"A{number}", name) for number, name in enumerate(["0.png", "1.jpg", "2.png", "3.png"])]
    first, second = found(rows, "alike_pictures")
    assert (first[0], second[0]) == ("train.jsonl:2", "train.jsonl:3")
    assert first[1].endswith("0.png in train.jsonl:1") and "1.jpg looks like " in first[1]
    assert found(rows, "alike_pictures", "not_compared", pictures="exist") == []


def test_a_shot_in_another_part_is_said_to_be_there(tmp_path, photo, write_rows):
    photo("a.png"), photo("b.jpg", quality=60)
    entries = {
        name: {
            "root": str(tmp_path),
            "annotation": str(write_rows([row("Q", "A", file)], f"{name}.jsonl")),
            "split": name,
        }
        for name, file in (("train", "a.png"), ("test", "b.jpg"))
    }
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    (problem,) = diagnose(tmp_path / "meta.json").by_code("alike_pictures")
    assert (problem.where, problem.found.endswith("a.png in train.jsonl:1 of split 'train'")) == ("test.jsonl:1", True)


def test_so_many_pictures_are_not_decoded_and_that_is_said(found, photo, monkeypatch):
    photo("0.png"), photo("1.jpg", quality=60)
    rows = [row("Q0", "A", "0.png"), row("Q1", "B", "1.jpg")]
    monkeypatch.setattr(overview, "COMPARED", 1)
    ((where, said),) = found(rows, "alike_pictures", "not_compared")
    assert where.endswith("train.jsonl")
    assert said == "2 pictures, more than 1: whether some look alike was not looked at"
    assert len(found(rows, "alike_pictures", pictures="decode")) == 1


# 12 bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_twelve_bits_in_sixteen_are_read_as_such_and_said(found, tmp_path, name):
    values = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / name)
    rgb = np.asarray(open_image(tmp_path / name))
    assert (rgb[0, 0, 0], rgb[32, 0, 0], rgb[-1, -1, 0]) == (0, 128, 255)
    assert np.asarray(open_image(tmp_path / name, rules=AS_REFERENCE)).max() == 255
    ((where, said),) = found([row("Q", "A", name)], "dark_depth")
    assert where == "train.jsonl:1" and said.endswith(f"{name} has values up to 4,095 of 65,535")


@pytest.mark.parametrize(
    ("top", "shown", "warned"),
    [(4095, 255, True), (4096, 15, True), (16383, 63, True), (16384, 63, False), (255, 15, True)],
)
def test_a_picture_is_of_twelve_bits_if_no_value_needs_more(found, tmp_path, top, shown, warned):
    Image.fromarray(np.full((40, 40), top, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png")).max() == shown
    assert bool(found([row("Q", "A", "a.png")], "dark_depth")) == warned


def test_a_tiff_of_several_pages_is_said(found, tmp_path, draw_picture):
    first, second, third = (draw_picture(64, 64, seed=seed) for seed in range(3))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second, third])
    first.save(tmp_path / "b.tif")
    assert found([row("Q0", "A", "a.tif"), row("Q1", "B", "b.tif")], "several_pages") == [
        ("train.jsonl:1", f"{tmp_path / 'a.tif'} has 3 pages")
    ]


def _png_of_16_bit_colours(value):
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 30, 30, 16, 2, 0, 0, 0)
    lines = (b"\0" + struct.pack(">H", value) * 90) * 30
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_nearly_black_colours_of_sixteen_bits_are_a_warning(found, tmp_path):
    for name, value in (("dark.png", 4000), ("bright.png", 40_000)):
        (tmp_path / name).write_bytes(_png_of_16_bit_colours(value))
    rows = [row("Q0", "A", "dark.png"), row("Q1", "B", "bright.png")]
    ((where, said),) = found(rows, "dark_depth")
    assert where == "train.jsonl:1" and "dark.png has values up to 3,855 of 65,535" in said


# EXIF and boxes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def phone(photo):
    """A photo of 320 × 240 px that its EXIF turns upright, by 90°."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return photo("phone.jpg", exif=exif)


BOX = "<box>[[100, 200, 300, 400]]</box>"


def test_boxes_on_a_picture_that_its_exif_turns_are_a_warning(found, phone, photo):
    photo("flat.jpg", 1)
    assert image_size(phone) == (240, 320)
    rows = [row("Where?", BOX, "phone.jpg"), row("Where?", BOX, "flat.jpg"), row("What?", "A dog", "phone.jpg")]
    ((where, said),) = found(rows, "turned_picture")
    assert where == "train.jsonl:1" and said.endswith(", which its EXIF turns")


def test_a_declared_size_that_only_the_turn_explains_is_never_mended(found, phone, tmp_path):
    rows = [row("Where?", BOX, "phone.jpg", width=320, height=240)]
    _, (where, said) = found(rows, "turned_picture")
    assert (where, said) == ("train.jsonl:1", "declared 320 x 240 px, the file has 240 x 320, as its EXIF turns it")
    assert found(rows, "declared_size") == []
    main(["check", str(tmp_path / "train.jsonl"), "--fix"])
    assert not (tmp_path / "train.fixed.jsonl").exists()


# other scripts -------------------------------------------------------------------------------------------------------


def test_answers_of_more_tokens_than_characters_are_said_in_one_line(found, processor, tmp_path):
    assert len(processor.tokenizer("வணக்கம்")["input_ids"]) > len("வணக்கம்") + 1
    rows = [row(f"Q{number}", "A dog and a cat") for number in range(90)]
    rows += [row(f"P{number}", "வணக்கம்") for number in range(10)]
    ((where, said),) = found(rows, "costly_answers")
    assert where == "train.jsonl:91"
    assert said.startswith("10 answers of more than a token a character, ") and said.endswith(" on average")
    photos = [row(f"Q{number}", "A dog and a cat", "a.png") for number in range(20)]
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert found(photos, "costly_answers", pictures="exist") == found(photos, "costly_answers") == []
    assert found(rows[:99], "costly_answers") == found(rows, "costly_answers", model=None) == []
