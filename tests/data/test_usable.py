"""A check, a run's start, a conversion and an evaluation agree on which rows can be used, and name the user's line."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import ivlkit as ivl
from ivlkit.data.checking.doctor import diagnose
from ivlkit.data.datasets.opening import from_csv, open_data
from ivlkit.data.importing.convert import convert
from ivlkit.errors import DataError
from ivlkit.training.loop.schedule import check_rows
from ivlkit.training.recipes import recipe

KINDS = ("jpg", "png", "gif", "webp", "bmp", "tif")


@pytest.fixture
def files(tmp_path):
    """{file: whether it is whole} of a folder: each format whole and cut, and what is no picture at all."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    for kind in KINDS:
        noise.save(tmp_path / f"whole.{kind}")
        content = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(content[: int(len(content) * 0.8)])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_text("<html>403 Forbidden</html>")
    broken = [*(f"cut.{kind}" for kind in KINDS), "empty.png", "page.png", "gone.png"]
    return {f"whole.{kind}": True for kind in KINDS} | dict.fromkeys(broken, False)


def lines_of(refuse, name):
    """The lines that the DataError of a call names."""
    with pytest.raises(DataError) as caught:
        refuse()
    assert "more" not in str(caught.value).splitlines()[-1]
    return {int(line) for line in re.findall(rf"{name}:(\d+): ", str(caught.value))}


def found_by_all(path, vlm, name, **opened):
    """The lines that check, a run's start and an evaluation call unusable, in the words of the file `name`."""
    data = open_data(path, **opened)
    report = diagnose(data, vlm.processor)
    checked = [str(problem) for problem in report.problems if problem.level == "error"]
    yield {int(line) for said in checked for line in re.findall(rf"{name}:(\d+): ", said)}
    yield lines_of(lambda: check_rows(data, vlm.processor, recipe("nano-lora")), name)
    yield lines_of(lambda: ivl.evaluate(vlm, data, progress=False), name)


def test_the_same_broken_files_are_refused_by_all_four(files, write_rows, turns, tiny_vlm, tmp_path):
    path = write_rows([{"image": name, "conversations": turns("<image>Q", f"A{name}")} for name in files])
    broken = {number for number, whole in enumerate(files.values(), 1) if not whole}
    assert list(found_by_all(path, tiny_vlm, "train.jsonl")) == [broken] * 3
    done = convert(path, tmp_path / "out", shares={"rows": 1.0})
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert {one["where"] for one in rejected} == {f"train.jsonl:{number}" for number in broken}
    assert all(one["error"].startswith(f"{one['where']}: ") for one in rejected)
    assert diagnose(done.meta, tiny_vlm.processor).ok


def test_a_file_that_breaks_after_the_conversion_is_named_by_the_line_of_the_table(files, tiny_vlm, tmp_path):
    names = [name for name, whole in files.items() if whole]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file,label", *(f"{name},{name}" for name in names)]))
    data = from_csv(table, question="What is it?")
    for name in names[1:3]:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:500])
    assert list(found_by_all(data.path, tiny_vlm, "labels.csv")) == [{3, 4}] * 3
    with pytest.raises(DataError, match=r"(?s)2 of 6 rows can't be used.*\n  rows.jsonl:2: labels.csv:3: .*whole.png"):
        ivl.evaluate(tiny_vlm, data, progress=False)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_cut_picture_inside_a_row_is_not_written_by_a_conversion(files, kind, tmp_path):
    content = (tmp_path / f"cut.{kind}").read_bytes()
    rows = [{"image": {"bytes": content}, "question": "What is it?", "answer": "A"}]
    with pytest.raises(DataError, match="none of 1 rows can be used:\n.*its data can't be decoded"):
        convert(rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_in_memory_are_refused_by_an_evaluation_with_their_place(files, write_rows, turns, tiny_vlm, tmp_path):
    path = write_rows([{"image": name, "conversations": turns("Q", "A")} for name in ("whole.png", "gone.png")])
    with pytest.raises(DataError, match="^train.jsonl:2: picture .*gone.png does not exist"):
        ivl.evaluate(tiny_vlm, ivl.read_records(path, tmp_path), progress=False)


@pytest.mark.parametrize("share", [0.55, 1.0])
def test_the_same_video_is_refused_or_used_by_all_four(share, write_rows, turns, tiny_vlm, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in np.random.default_rng(0).integers(0, 255, (40, 64, 96, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(whole[: int(len(whole) * share)])
    rows = [{"conversations": turns("Q0", "A"), "id": 0}]
    rows += [{"video": "a.mkv", "conversations": turns("<video>Q", "B")} | about for about in ({"clip": [0, 1]}, {})]
    path = write_rows(rows)
    done = convert(path, tmp_path / "out", shares={"rows": 1.0})
    if share < 1:
        assert list(found_by_all(path, tiny_vlm, "train.jsonl")) == [{3}] * 3
        assert done.rejected == 1 and done.first_rejects[0].startswith("train.jsonl:3: ")
    else:
        assert done.rejected == 0 and diagnose(path, tiny_vlm.processor).ok
        check_rows(open_data(path), tiny_vlm.processor, recipe("nano-lora"))
        assert len(ivl.evaluate(tiny_vlm, path, progress=False).rows) == 3
