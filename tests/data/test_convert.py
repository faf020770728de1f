"""Any source → the released JSONL, its meta files, a split by picture, and a list of what was refused."""

import base64
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ivlkit.cli import main
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.importing.convert import convert
from ivlkit.data.importing.gather import fetch_url
from ivlkit.errors import DataError


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def llava(tmp_path, draw_picture, turns):
    """A LLaVA list of 20 rows about 10 pictures, two rows each; pictures 0 and 9 have the same bytes."""
    for number in range(10):
        draw_picture(40, 30, seed=number % 9).save(tmp_path / f"{number}.png")
    rows = [{"id": n, "image": f"{n % 10}.png", "conversations": turns("<image>\nQ", f"A{n}")} for n in range(20)]
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    return tmp_path / "llava.json"


def test_one_picture_is_never_on_two_sides(llava, tmp_path):
    done = convert(llava, tmp_path / "out")
    sides = {}
    for name in done.rows:
        for row in lines(tmp_path / "out" / f"{name}.jsonl"):
            sides.setdefault((tmp_path / row["image"]).read_bytes(), set()).add(name)
    assert all(len(names) == 1 for names in sides.values()) and len(sides) == 9
    assert sum(done.rows.values()) == 20
    assert done.detected == "JSON list of released rows"


def test_equal_rows_without_pictures_are_never_on_two_sides(tmp_path, write_rows, turns):
    path = write_rows([{"conversations": turns(f"Q{number % 5}", "A")} for number in range(40)])
    sides = {}
    for name in convert(path, tmp_path / "out").rows:
        for row in lines(tmp_path / "out" / f"{name}.jsonl"):
            sides.setdefault(row["conversations"][0]["value"], set()).add(name)
    assert all(len(names) == 1 for names in sides.values()) and len(sides) == 5


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({}, "expected numbers that sum to 1"),
        ({"train": 0.5}, "expected numbers that sum to 1"),
        ({"train": 2, "test": -1}, "expected numbers that sum to 1"),
        (
            {"train": 0.5, "meta": 0.5},
            "a split named 'meta'; expected a file's name, none of conversion, meta, rejects",
        ),
        ({"train": 0.5, "rejects": 0.5}, "a split named 'rejects'"),
        ({"../train": 1}, "a split named '../train'"),
    ],
)
def test_shares_that_cannot_be_written_are_refused_at_once(llava, tmp_path, shares, said):
    with pytest.raises(DataError, match=said):
        convert(llava, tmp_path / "out", shares=shares)
    assert not (tmp_path / "out").exists()
    assert convert(llava, tmp_path / "out", shares={"train": 1, "test": 0}).rows == {"train": 20}


def test_what_is_written_opens_and_pictures_stay_where_they_are(llava, tmp_path):
    done = convert(llava, tmp_path / "out", shares={"train": 0.5, "test": 0.5})
    train, test = open_data(done.meta), open_data(tmp_path / "out" / "test.json")
    assert len(train) + len(test) == 20
    assert all(record.images[0].parent == tmp_path for record in [*train, *test])
    assert not (tmp_path / "out" / "images").exists()
    assert sorted(train.sources[0].annotation.name for train in (train, test)) == ["test.jsonl", "train.jsonl"]


def test_meta_json_has_all_parts_and_training_takes_its_own(llava, tmp_path):
    done = convert(llava, tmp_path / "out")
    train, test = open_data(done.meta), open_data(done.meta, split="test")
    assert (len(train), len(open_data(done.meta, split="validation")), len(test)) == tuple(done.rows.values())
    assert {record.where.partition(":")[0] for record in train} == {"train.jsonl"}
    assert len(open_data(done.meta, split="all")) == 20
    assert [record.id for record in open_data(tmp_path / "out" / "test.json")] == [record.id for record in test]


def test_training_takes_the_part_called_train_or_else_the_largest(llava, tmp_path):
    small = convert(llava, tmp_path / "small", shares={"test": 0.7, "train": 0.3})
    assert len(open_data(small.meta)) == small.rows["train"] < small.rows["test"]
    (tmp_path / "llava.json.split.csv").unlink()
    named = convert(llava, tmp_path / "named", shares={"rest": 0.3, "fit": 0.7})
    assert len(open_data(named.meta)) == named.rows["fit"] > named.rows["rest"]
    assert len(open_data(named.meta, split="rest")) == named.rows["rest"]


def test_a_meta_file_of_an_earlier_version_opens_as_before(llava, tmp_path):
    """It had the training rows alone, and conversion.json no `path`: what is cut lies beside it then."""
    done = convert(llava, tmp_path / "out")
    entries, note = json.loads(done.meta.read_text()), json.loads((done.folder / "conversion.json").read_text())
    name, entry = next(iter(entries.items()))
    done.meta.write_text(json.dumps({name: entry}))
    (done.folder / "conversion.json").write_text(json.dumps({key: note[key] for key in note if key != "path"}))
    data = open_data(done.meta)
    assert len(data) == done.rows["train"] == len(open_data(done.meta, split="all"))
    data.split(a=0.5, b=0.5)
    assert (done.folder / "meta.json.train.split.csv").exists()


def test_the_same_rows_and_seed_give_the_same_files(llava, tmp_path):
    for name in ("a", "b"):
        convert(llava, tmp_path / name, seed=3)
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_second_conversion_leaves_nothing_of_the_first(llava, tmp_path, turns):
    convert(llava, tmp_path / "out")
    (tmp_path / "out" / "mine.json").write_text("{}")
    rows = [*json.loads(llava.read_text())[0:10:9], {"id": 9, "conversations": []}]  # both in the largest group: train
    llava.write_text(json.dumps(rows))
    done = convert(llava, tmp_path / "out")
    assert (done.rows, done.rejected) == ({"train": 2}, 1)
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["conversion.json", "meta.json", "mine.json", "rejects.jsonl", "train.jsonl"]
    llava.write_text(json.dumps(rows[:2]))
    assert not (convert(llava, tmp_path / "out").folder / "rejects.jsonl").exists()


def test_the_same_rows_again_touch_no_file(llava, tmp_path):
    """A run may be reading them."""
    convert(llava, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    convert(llava, tmp_path / "out")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_another_source_does_not_write_over_it(llava, tmp_path, write_rows, turns):
    convert(llava, tmp_path / "out")
    with pytest.raises(DataError, match="out: holds other files; .* of an earlier conversion of train.jsonl; name"):
        convert(write_rows([{"conversations": turns("Q", "A")}]), tmp_path / "out")


def test_a_source_of_the_same_name_in_another_folder_does_not_write_over_it(llava, tmp_path):
    before = convert(llava, tmp_path / "out").meta.read_bytes()
    (tmp_path / "other").mkdir()
    other = shutil.copy(llava, tmp_path / "other")
    with pytest.raises(DataError, match="out: holds the rows of .*llava.json; expected a new folder; name another"):
        convert(other, tmp_path / "out", images=tmp_path)
    assert (tmp_path / "out" / "meta.json").read_bytes() == before
    llava.rename(llava.with_name("gone.json"))
    assert convert(other, tmp_path / "out", images=tmp_path).rejected == 0  # the same source, moved


def test_a_failed_conversion_leaves_the_earlier_one(llava, tmp_path):
    before = convert(llava, tmp_path / "out").meta.read_bytes()
    llava.write_text("[")
    with pytest.raises(DataError, match="llava.json: broken JSON"):
        convert(llava, tmp_path / "out")
    with pytest.raises(DataError, match="llava.json: broken JSON"):
        convert(llava, tmp_path / "new")
    assert (tmp_path / "out" / "meta.json").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.part")) and not (tmp_path / "new").exists()


def test_json_lines_of_several_formats_are_told_apart(tmp_path, write_rows, turns):
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [{"conversations": turns("Q", "A")}, {"messages": messages}, {"messages": messages}, {"messages": 3}]
    done = convert(write_rows(rows), tmp_path / "out", shares={"rows": 1})
    assert done.detected == "JSON lines of 2 openai, 1 released rows"
    assert [row["conversations"] for row in lines(tmp_path / "out" / "rows.jsonl")] == [turns("Q", "A")] * 3
    (reject,) = lines(tmp_path / "out" / "rejects.jsonl")
    assert (reject["where"], reject["row"]) == ("train.jsonl:4", {"messages": 3})
    assert reject["error"].startswith("train.jsonl:4: no `conversations`")


def test_what_it_writes_says_where_it_came_from_and_keeps_other_fields(tmp_path, write_rows, turns):
    path = write_rows([{"id": 7, "conversations": turns("Q", "Ä"), "task": "x", "note": {"a": [1]}}])
    convert(path, tmp_path / "out", shares={"rows": 1})
    assert lines(tmp_path / "out" / "rows.jsonl") == [
        {"id": 7, "conversations": turns("Q", "Ä"), "task": "x", "note": {"a": [1]}, "source": "train.jsonl:1"}
    ]


def test_a_row_keeps_its_own_source(tmp_path, write_rows, turns):
    path = write_rows([{"conversations": turns("Q", "A"), "source": "the archive"}])
    convert(path, tmp_path / "out", shares={"rows": 1})
    (row,) = lines(tmp_path / "out" / "rows.jsonl")
    assert (row["source"], row["row_source"]) == ("train.jsonl:1", "the archive")


def test_data_uris_become_files_once(tmp_path, write_rows, draw_picture, turns):
    buffer = io.BytesIO()
    draw_picture(30, 20).save(buffer, format="JPEG")
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    path = write_rows([{"image": uri, "conversations": turns("Q", "A")}] * 2)
    done = convert(path, tmp_path / "out", shares={"rows": 1})
    (file,) = (tmp_path / "out" / "images").iterdir()
    assert (file.read_bytes(), file.suffix) == (buffer.getvalue(), ".jpg")
    assert open_data(done.meta)[1].images == (file,)


def test_a_picture_that_an_earlier_conversion_left_half_written_is_written_anew(
    tmp_path, write_rows, draw_picture, turns
):
    buffer = io.BytesIO()
    draw_picture(30, 20).save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    rows = write_rows([{"image": uri, "conversations": turns("<image>\nQ", "A")}])
    convert(rows, tmp_path / "out")
    (picture,) = (tmp_path / "out" / "images").iterdir()
    picture.write_bytes(buffer.getvalue()[:50])
    convert(rows, tmp_path / "out")
    assert picture.read_bytes() == buffer.getvalue()


def test_absolute_paths_need_a_root_that_holds_them(tmp_path, write_rows, draw_picture, turns):
    (tmp_path / "pics").mkdir()
    draw_picture().save(tmp_path / "pics" / "a.png")
    path = write_rows([{"image": str(tmp_path / "pics" / "a.png"), "conversations": turns("Q", "A")}], "rows/a.jsonl")
    with pytest.raises(DataError, match="none of 1 rows can be used:\n  a.jsonl:1: .* leaves the folder"):
        convert(path, tmp_path / "out")
    done = convert(path, tmp_path / "out", images="/")
    assert open_data(done.meta)[0].images == (tmp_path / "pics" / "a.png",)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        ("  ", "a picture without a name; expected a path"),
        ("#page=2", "a picture without a name; expected a path"),
        ("iVBOR" + "w0KGgo" * 60, "a data URI that is no base64"),
        ("iVBOR" + "w0KGgo" * 60 + "/a.png", "does not exist; expected a file there"),
        ({"bytes": "x"}, "does not exist; expected a file there"),
    ],
)
def test_a_picture_that_no_file_can_be_called_is_one_reject(llava, tmp_path, write_rows, turns, picture, said):
    path = write_rows([{"image": name, "conversations": turns("Q", "A")} for name in (picture, "0.png")])
    assert convert(path, tmp_path / "out", shares={"rows": 1.0}).rows == {"rows": 1}
    (reject,) = lines(tmp_path / "out" / "rejects.jsonl")
    assert reject["error"].startswith("train.jsonl:1: ") and said in reject["error"]


def test_a_folder_of_frames_may_hold_other_folders(tmp_path, write_rows, draw_picture, turns):
    (tmp_path / "clip" / ".thumbnails").mkdir(parents=True)
    draw_picture(30, 20).save(tmp_path / "clip" / "1.png")
    path = write_rows([{"video": "clip", "conversations": turns("<video>Q", "A")}])
    assert convert(path, tmp_path / "out", shares={"rows": 1.0}).rows == {"rows": 1}


class Pictures(BaseHTTPRequestHandler):
    content = b""

    def do_GET(self):
        self.send_response(200 if self.path == "/a.png" else 404)
        self.end_headers()
        self.wfile.write(self.content if self.path == "/a.png" else b"")

    def log_message(self, *_):
        """Silent."""


@pytest.fixture
def server(draw_picture):
    buffer = io.BytesIO()
    draw_picture(30, 20).save(buffer, format="PNG")
    Pictures.content = buffer.getvalue()
    served = HTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def test_remote_pictures_are_fetched_only_when_asked_for(tmp_path, write_rows, server, turns, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    path = write_rows([{"image": f"{server}/{n}.png", "conversations": turns("Q", "A")} for n in "ab"])
    with pytest.raises(DataError, match="is on another machine; expected a file; fetch it first"):
        convert(path, tmp_path / "out")
    done = convert(path, tmp_path / "out", fetch=fetch_url)
    (reject,) = lines(tmp_path / "out" / "rejects.jsonl")
    assert "train.jsonl:2" in reject["error"] and "/b.png can't be fetched (HTTP Error 404" in reject["error"]
    assert open_data(done.meta)[0].images[0].read_bytes() == Pictures.content
    monkeypatch.setattr("ivlkit.data.importing.gather.MAX_FETCHED_BYTES", 10)
    with pytest.raises(DataError, match="is larger than 10 bytes"):
        convert(path, tmp_path / "small", fetch=fetch_url)


def test_the_address_of_a_file_is_its_path(write_rows, turns, draw_picture, tmp_path):
    draw_picture().save(tmp_path / "a photo.png")
    rows = write_rows([{"image": (tmp_path / "a photo.png").as_uri(), "conversations": turns("<image>\nQ", "A")}])
    assert "a%20photo" in rows.read_text()
    assert open_data(convert(rows, tmp_path / "out").meta)[0].images == (tmp_path / "a photo.png",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{}", "a.json: a dict of 0; expected a list of rows; a meta file is opened as it is"),
        ("a.json", "[]", "a.json: a list of 0; expected a list of rows"),
        (
            "a.json",
            '{"name": "x", "data": [{}]}',
            "a dict of 2; expected a list of rows; write the list in 'data' alone",
        ),
        (
            "a.json",
            '{"id": 1}\n{"id": 2}',
            "Extra data.*expected a list of rows; .*if each line is a row, name it .jsonl",
        ),
        ("a.jsonl", '[{"id": 1}]', "a.jsonl:1: a list; .*; a file that is one list is named .json"),
        ("a.json", "[1]", "none of 1 rows can be used:\n  a.json: row 1: a int; expected an object"),
        ("a.txt", "x", "a.txt: suffix '.txt'; expected .jsonl, .json, .csv"),
        ("a.csv", "image,question,answer\n", "a.csv: none of 0 rows can be used: it has none; expected one at least"),
        ("a.jsonl", "{\n", "none of 1 rows can be used:\n  a.jsonl:1: broken JSON"),
    ],
)
def test_a_source_that_holds_no_rows_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_json_list_opens_as_it_is(llava):
    data = open_data(llava)
    assert (len(data), data[3].answer) == (20, "A3")
    assert "llava.json (JSON list of released rows)" in repr(data)


def test_columns_beside_json_rows_are_refused(llava, tmp_path):
    with pytest.raises(DataError, match="answer='label' beside JSON rows; expected it with a table only; leave it out"):
        convert(llava, tmp_path / "out", answer="label")


@pytest.fixture
def labels(tmp_path, draw_picture):
    """photos/ of twelve pictures and labels.csv, whose line 5 has the answer "nan"."""
    (tmp_path / "photos").mkdir()
    for number in range(12):
        draw_picture(60 + 2 * number, 40, seed=number).save(tmp_path / "photos" / f"{number}.png")
    answers = ["cat", "dog", "owl", "nan", *"efghijkl"]
    rows = [f"{number}.png,{answer}" for number, answer in enumerate(answers)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    return tmp_path / "labels.csv"


def convert_labels(labels, *options):
    to, images = labels.parent / "out", labels.parent / "photos"
    return main(
        ["convert", str(labels), "--images", str(images), "--question", "What is it?", "--to", str(to), *options]
    )


def test_the_command_checks_what_it_wrote_in_the_lines_of_the_table(labels, capsys):
    assert convert_labels(labels) == 0
    said = capsys.readouterr().out
    assert "out/meta.json: 12 rows, 12 usable; 0 errors, 1 warning, 0 info" in said
    assert "\n  labels.csv:5: warning: the answer 'nan'; expected an answer; " in said


def test_a_check_after_the_conversion_misses_no_picture_of_validation_and_test(labels, capsys):
    convert_labels(labels)
    main(["check", str(labels.parent / "out" / "meta.json")])
    assert "no row names" not in capsys.readouterr().out
    (labels.parent / "photos" / "0.png").rename(labels.parent / "photos" / "unused.png")
    labels.write_text(labels.read_text().replace("0.png,cat\n", ""))
    convert_labels(labels)
    assert "1 pictures that no row names: unused.png" in capsys.readouterr().out


def test_the_command_fails_where_the_check_finds_an_error(tmp_path, draw_picture, capsys):
    for part in ("train", "test"):
        (tmp_path / "fruit" / part / "lime").mkdir(parents=True)
        draw_picture().save(tmp_path / "fruit" / part / "lime" / "a.png")
    arguments = ["convert", str(tmp_path / "fruit"), "--to", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "test/lime/a.png: error: " in (said := capsys.readouterr().out) and "[leak]" in said
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["check"]["counts"]["leak"] == 1


def test_the_command(llava, tmp_path, capsys):
    rows = [*json.loads(llava.read_text()), {"id": 99}]
    llava.write_text(json.dumps(rows))
    assert main(["convert", str(llava), "--to", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "16 train, 2 validation, 2 test, 1 rejected" in printed
    assert "  rejected: llava.json: row 21: no `conversations`" in printed
    assert main(["convert", str(llava), "--to", str(tmp_path / "one"), "--split", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {"rows": 20}
    assert main(["convert", str(llava), "--to", str(tmp_path / "x"), "--split", "a/b"]) == 2
    assert "--split 'a/b'; expected three shares like 80/10/10, or none" in capsys.readouterr().err


def test_a_column_that_says_each_rows_part_is_kept_where_it_is_named(tmp_path, draw_picture, capsys):
    parts = ["train", "test", "Val", "train", "extra"]
    for number in range(len(parts)):
        draw_picture(60, 40, seed=number).save(tmp_path / f"{number}.png")
    lines = [f"{number}.png,What?,a{number},{part}\n" for number, part in enumerate(parts)]
    (tmp_path / "a.csv").write_text("image,question,answer,split\n" + "".join(lines))
    command = ["convert", str(tmp_path / "a.csv"), "--to", str(tmp_path / "out"), "--alike", "apart"]
    assert main(command) == 0
    said = "the rows' own field `split` (test, train, validation) was not used; --split split keeps it"
    assert said in capsys.readouterr().out
    assert main([*command[:-2], "--split", "split"]) == 0
    printed = capsys.readouterr().out
    assert "2 train, 1 validation, 1 test, 1 rejected" in printed and said not in printed
    assert "a.csv:6: `split` is 'extra'; expected train, validation or test; correct it" in printed
    assert [record.answer for record in open_data(tmp_path / "out", split="validation")] == ["a2"]
