"""Pictures that look alike are found without comparing each with each, and kept on one side of a split."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

import ivlkit
from ivlkit.data import splits
from ivlkit.data.datasets.opening import from_csv
from ivlkit.data.importing.convert import convert
from ivlkit.data.likeness import alike_groups
from ivlkit.nano.digits import write_digit_strips

PHOTOS = sorted((Path(ivlkit.__file__).parent / "models" / "verify_data").glob("*.jpg"))


def burst(photo, folder, count=24):
    """One photo as a hand-held camera sees it again and again: moved by up to 1.3 %, other light, noise and JPEG."""
    rng, image = np.random.default_rng(0), Image.open(photo).convert("RGB")
    for number in range(count):
        dx, dy = rng.integers(-6, 7, 2)
        shot = image.crop((8 + dx, 8 + dy, image.width - 8 + dx, image.height - 8 + dy))
        shot = np.asarray(ImageEnhance.Brightness(shot).enhance(rng.uniform(0.94, 1.06)), float)
        shot = (shot + rng.normal(0, 4, shot.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(shot).save(folder / f"{photo.stem}{number:02}.jpg", quality=int(rng.integers(60, 96)))
    return sorted(folder.glob(f"{photo.stem}*.jpg"))


def groups_of(files):
    """The files that are alike, as sets of names."""
    found = {}
    for name, number in alike_groups({str(file): str(file) for file in files}).items():
        found.setdefault(number, set()).add(Path(name).name)
    return sorted(found.values(), key=sorted)


def test_every_burst_is_one_group_and_no_two_photos_are(tmp_path):
    shots = [burst(photo, tmp_path) for photo in PHOTOS]
    assert len(shots) >= 4
    assert groups_of([file for files in shots for file in files]) == [{file.name for file in one} for one in shots]
    assert groups_of(PHOTOS) == []


def test_a_smaller_and_a_recompressed_copy_are_alike_and_a_turned_one_is_upright(tmp_path):
    image = Image.open(PHOTOS[0]).convert("RGB")
    image.save(tmp_path / "a.png")
    image.resize((image.width // 2, image.height // 2)).save(tmp_path / "b.jpg", quality=50)
    exif = Image.Exif()
    exif[0x0112] = 6  # the file lies on its side
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "c.jpg", exif=exif)
    assert groups_of(sorted(tmp_path.iterdir())) == [{"a.png", "b.jpg", "c.jpg"}]


def test_digits_and_flat_colours_are_not_alike(tmp_path):
    """A hash of 64 bits alone takes many of them for one picture."""
    path = write_digit_strips(tmp_path / "strips", "train", rows=200, digits=(1, 1), tasks=("read",))
    assert groups_of(sorted(path.parent.rglob("*.png"))) == []
    for name in ("red", "green", "blue", "white"):
        Image.new("RGB", (64, 64), name).save(tmp_path / f"{name}.png")
    assert groups_of(sorted(tmp_path.glob("*.png"))) == []


def test_augmented_copies_are_known_by_their_names(tmp_path):
    image = Image.open(PHOTOS[0])
    names = ["cat_jpg.rf.0a1b2c3d4e5f.jpg", "cat_jpg.rf.5e4d3c2b1a00.jpg", "dog_jpg.rf.0a1b2c3d4e5f.jpg", "cat_jpg.jpg"]
    for number, name in enumerate(names):
        image.rotate(90 * number, expand=True).resize((40 + 30 * number, 90)).save(tmp_path / name)
    assert groups_of(sorted(tmp_path.iterdir())) == [set(names[:2])]


def test_a_picture_that_cannot_be_read_is_like_no_other(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(PHOTOS[0].read_bytes()[:300])
    assert groups_of(sorted(tmp_path.iterdir())) == [] == groups_of([])


def test_each_with_each_gives_the_same_groups(tmp_path):
    """Twenty drawings, each also moved by a pixel, against all 780 comparisons of two."""
    for number in range(20):
        for moved_px in range(2):
            rng = np.random.default_rng(number)
            image = Image.new("RGB", (120, 90), tuple(rng.integers(0, 256, 3).tolist()))
            for left, top in rng.integers(0, 80, (9, 2)).tolist():
                colour = tuple(rng.integers(0, 256, 3).tolist())
                box = (left + moved_px, top, left + 30 + moved_px, top + 20)
                ImageDraw.Draw(image).rectangle(box, fill=colour)
            image.save(tmp_path / f"{number:02}{moved_px}.png")
    files = sorted(tmp_path.iterdir())
    pairs = [pair for pair in combinations(files, 2) if groups_of(pair)]
    assert groups_of(files) == [{one.name, other.name} for one, other in pairs]
    assert len(pairs) >= 15


@pytest.fixture
def photos_table(tmp_path):
    """24 shots of one thing labelled Yes, yes, YES and no, among 120 pictures of noise → labels.csv."""
    (tmp_path / "photos").mkdir()
    files = burst(PHOTOS[0], tmp_path / "photos")
    for number in range(120):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"n{number}.png")
    files += sorted((tmp_path / "photos").glob("n*.png"))
    answers = ["Yes", "yes", "YES", "no"] * 36
    rows = [f"{file.name},{answer}" for file, answer in zip(files, answers, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    return tmp_path / "labels.csv"


def opened(table):
    return from_csv(table, images=table.parent / "photos", question="Is it?", answer="label")


def shots_in(split):
    return [sum(record.images[0].name.startswith(PHOTOS[0].stem) for record in part) for part in split]


def test_burst_shots_stay_on_one_side_and_their_number_is_said(photos_table):
    data = opened(photos_table)
    said = r"24 of 144 rows have pictures that look alike, in 1 groups of up to 24 rows; new ones stay together"
    with pytest.warns(UserWarning, match=said):
        together = data.split()
    assert sorted(shots_in(together)) == [0, 0, 24]
    assert [len(part) for part in together] == pytest.approx([115, 14, 14], abs=1)
    apart = data.split(alike="apart", file=photos_table.parent / "apart.csv")  # says nothing
    assert sorted(shots_in(apart)) != [0, 0, 24]


def test_shots_that_come_later_follow_those_that_have_a_part(photos_table):
    lines = photos_table.read_text().splitlines()
    photos_table.write_text("\n".join([lines[0], *lines[13:]]))
    with pytest.warns(UserWarning, match="12 of 132 rows"):
        first = shots_in(opened(photos_table).split())
    photos_table.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="24 of 144 rows"):
        second = shots_in(opened(photos_table).split())
    assert [24 * bool(count) for count in first] == second


def test_a_conversion_keeps_and_says_it_too(photos_table, tmp_path):
    options = {"images": tmp_path / "photos", "question": "Is it?", "answer": "label"}
    done = convert(photos_table, tmp_path / "out", **options)
    assert "24 of 144 rows have pictures that look alike" in " ".join(done.said)
    assert convert(photos_table, tmp_path / "out", **options, alike="apart").said == ()


@pytest.mark.parametrize(("rows", "parts"), [(24, [20, 2, 2]), (25, [21, 2, 2])])
def test_what_would_leave_a_part_without_rows_is_split_as_if_it_differed(photos_table, rows, parts):
    """Forms of one print, or the same display again and again."""
    photos_table.write_text("\n".join(photos_table.read_text().splitlines()[: rows + 1]))
    with pytest.warns(UserWarning, match=rf"24 of {rows} rows .* leave a part without rows, so they are split as if"):
        split = opened(photos_table).split()
    assert [len(part) for part in split] == pytest.approx(parts, abs=1)


def test_most_rows_may_look_alike_as_long_as_every_part_gets_rows(photos_table):
    photos_table.write_text("\n".join(photos_table.read_text().splitlines()[:41]))
    with pytest.warns(UserWarning, match=r"24 of 40 rows"):
        split = opened(photos_table).split()
    assert ([len(part) for part in split], shots_in(split)) == ([32, 4, 4], [24, 0, 0])


def test_many_pictures_are_looked_at_only_when_asked_for(photos_table, monkeypatch):
    monkeypatch.setattr(splits, "LOOKED_AT", 100)
    data = opened(photos_table)
    with pytest.warns(UserWarning, match=r"144 pictures are more than 100: whether some look alike was not looked at"):
        assert sorted(shots_in(data.split())) != [0, 0, 24]
    (photos_table.parent / "labels.csv.split.csv").unlink()
    with pytest.warns(UserWarning, match="24 of 144 rows"):
        assert sorted(shots_in(data.split(alike="together"))) == [0, 0, 24]
