"""Mended copies: one right answer each, beside the file, every row kept."""

import json

import pytest
from PIL import Image

from ivlkit.cli import main
from ivlkit.data.checking.doctor import diagnose
from ivlkit.data.checking.findings import KINDS
from ivlkit.data.checking.mend import LINE_MENDERS, ROW_MENDERS, mend, mend_line
from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import DataError
from ivlkit.models.checkup import mend_all


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "sub" / "a.png")
    return tmp_path


def line(**row):
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def turns(*pairs):
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]}


GOOD = line(**turns(("human", "Q "), ("gpt", "A")))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (GOOD, GOOD),
        (b"\xef\xbb\xbf" + GOOD, GOOD),
        (GOOD[:-1] + b"\r\n", GOOD),
        (line(**turns(("human", "Q "), ("gpt", " A\n"))), GOOD),
        (line(**turns(("Human", "Q "), (" GPT", "A"))), GOOD),
        (line(**turns(("human", "Q \0"), ("gpt", "\x1bA"))), GOOD),
        (line(**turns(("human", "Q"), ("bard", "A"))), line(**turns(("human", "Q"), ("bard", "A")))),
        (line(image="sub\\a.png"), line(image="sub/a.png")),
        (line(image=["sub\\a.png"]), line(image=["sub/a.png"])),
        (line(image="sub\\gone.png"), line(image="sub\\gone.png")),
        (line(image="sub\\" + "a" * 300),) * 2,
        (line(image="sub/a.png", width=1, height=2), line(image="sub/a.png", width=64, height=48)),
        (line(image="gone.png", width=1, height=2), line(image="gone.png", width=1, height=2)),
        (b'{"id": 1, "id": 2, "conversations": []}\r\n', b'{"id": 1, "id": 2, "conversations": []}\n'),
        (b'{"broken\n', b'{"broken\n'),
        (b'{"conversations": [{"from": "gpt", "value": " \\ud83d"}]}\n',) * 2,
    ],
)
def test_a_line_is_mended_where_one_answer_is_right(root, before, after):
    assert mend_line(before, root) == after


def test_a_copy_is_written_beside_the_file_and_has_no_finding_left(root):
    path = root / "train.jsonl"
    rows = [{"image": "sub\\a.png"} | turns(("Human", f"Q{n}"), ("gpt", f" {n}")) for n in range(3)]
    path.write_bytes(b"".join(line(**row)[:-1] + b"\r\n" for row in rows))
    before = path.read_bytes()
    found = diagnose(path)
    assert found.counts == {"crlf": 3, "unknown_role": 6 - 3, "backslash_path": 3}
    fixed, changed = mend(open_data(path).sources[0])
    assert (fixed, changed) == (root / "train.fixed.jsonl", 3)
    assert path.read_bytes() == before
    assert diagnose(fixed).problems == []
    with pytest.raises(DataError, match="train.fixed.jsonl: exists"):
        mend(open_data(path).sources[0])


def test_what_is_mended_is_a_kind_of_problem():
    assert {*LINE_MENDERS, *ROW_MENDERS} <= set(KINDS)


def test_nothing_is_written_where_nothing_is_to_be_mended(root):
    (root / "train.jsonl").write_bytes(GOOD)
    assert mend(open_data(root / "train.jsonl").sources[0]) == (None, 0)
    assert sorted(path.name for path in root.iterdir()) == ["sub", "train.jsonl"]


@pytest.mark.parametrize(
    ("content", "options", "code"),
    [
        (GOOD, [], 0),
        (line(**turns(("human", "Q"))), [], 1),
        (line(**turns(("human", "Q"), ("gpt", ""))), [], 0),
        (line(**turns(("human", "Q"), ("gpt", ""))), ["--strict"], 1),
        (line(**turns(("human", "Q"), ("gpt", " A"))), ["--strict"], 0),
    ],
)
def test_the_exit_code_says_what_was_found(root, content, options, code, capsys):
    (root / "train.jsonl").write_bytes(content)
    assert main(["check", str(root / "train.jsonl"), *options]) == code


def test_the_command_writes_pages_problems_and_copies(root, capsys):
    (root / "train.jsonl").write_bytes(line(**turns(("human", "Q"), ("gpt", " A"))))
    wanted = ["--html", str(root / "r.html"), "--problems", str(root / "p.jsonl"), "--fix", "--json", "--model", "nano"]
    assert main(["check", str(root / "train.jsonl"), *wanted]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["counts"] == {"outer_whitespace": 1}
    assert "train.fixed.jsonl: 1 rows mended; name it in place of train.jsonl" in printed.err
    assert (root / "r.html").stat().st_size > 1000
    assert json.loads((root / "p.jsonl").read_text())["code"] == "outer_whitespace"


def test_a_file_that_is_two_sets_is_mended_once(root):
    (root / "train.jsonl").write_bytes(line(**turns(("human", "Q"), ("gpt", " A"))))
    entry = {"root": str(root), "annotation": str(root / "train.jsonl")}
    (root / "meta.json").write_text(json.dumps({"one": entry, "two": entry | {"max_dynamic_patch": 2}}))
    (said,) = mend_all(root / "meta.json")
    assert "train.fixed.jsonl: 1 rows mended" in said
