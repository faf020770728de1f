"""The line index: exact for any file, shared through a mapped file, built anew when the file changes."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ivlkit
from ivlkit.data.datasets import index as index_module
from ivlkit.data.datasets.index import LineIndex
from ivlkit.errors import DataError

MIB = 1 << 20


@pytest.fixture
def large(tmp_path):
    """A file of 1.2 MiB: 12,000 rows with a blank line after every thousandth."""
    path = tmp_path / "set" / "large.jsonl"
    path.parent.mkdir()
    lines = [b'{"id": %06d, "text": "%s"}\n' % (number, b"x" * 80) for number in range(12_000)]
    path.write_bytes(b"".join(line + b"\n" * (number % 1000 == 999) for number, line in enumerate(lines)))
    return path


def stored(path):
    return sorted(path.parent.glob(".ivlkit/*"))


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(st.sampled_from([b"{}", b'{"a": 1}', b"", b" ", b"\t \r", b"\r", b" {}", b"\x0b", b"x" * 40])),
    ends=st.booleans(),
)
def test_rows_and_lines_are_those_of_reading_line_by_line(tmp_path_factory, lines, ends):
    path = tmp_path_factory.mktemp("index") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))
    with open(path, "rb") as file:
        expected = [(line, f"a.jsonl:{n}") for n, line in enumerate(file, start=1) if line.strip()]
    if not expected:
        with pytest.raises(DataError, match="no rows"):
            LineIndex(path)
        return
    found = LineIndex(path)
    assert [found.line(row) for row in range(len(found))] == expected
    assert found.lines(0, len(found)) == [line for line, _ in expected]


def test_a_large_file_is_indexed_once_and_mapped(large, monkeypatch):
    first = LineIndex(large)
    assert len(first) == 12_000
    assert first.where(0) == "large.jsonl:1" and first.where(1000) == "large.jsonl:1002"
    (place,) = stored(large)
    assert place.stat().st_size == 128 + 8 * (12_000 + 12 + 9)
    monkeypatch.setattr(index_module, "_scan", None)
    again = LineIndex(large)
    assert isinstance(again.offsets.base, np.memmap) or isinstance(again.offsets, np.memmap)
    assert again.line(11_999) == first.line(11_999)
    assert again.sha256 == first.sha256


def test_it_is_stored_as_plain_numbers(large):
    LineIndex(large)
    array = np.load(stored(large)[0], allow_pickle=False)
    assert array.dtype == np.int64


def test_a_small_file_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert len(LineIndex(tmp_path / "a.jsonl")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_changed_file_is_indexed_anew_even_at_equal_size(large):
    before = LineIndex(large)
    content = large.read_bytes()
    large.write_bytes(content.replace(b"000000", b"999999", 1))
    os.utime(large, ns=(0, 12345))
    after = LineIndex(large)
    assert after.sha256 != before.sha256
    assert after.line(0)[0].startswith(b'{"id": 999999')
    large.write_bytes(content[: len(content) // 2 + 40])
    assert len(LineIndex(large)) < 7000


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_index_is_replaced(large, damage):
    LineIndex(large)
    (place,) = stored(large)
    place.write_bytes(place.read_bytes()[:-80] if damage is None else damage)
    assert len(LineIndex(large)) == 12_000
    assert len(np.load(place)) > 12_000


def test_a_folder_that_cannot_be_written_uses_the_users_cache(large, tmp_path, monkeypatch):
    monkeypatch.setenv("IVLKIT_CACHE", str(tmp_path / "cache"))
    large.with_name(".ivlkit").write_text("a file where the folder would be")
    LineIndex(large)
    (place,) = (tmp_path / "cache").iterdir()
    assert place.name.startswith("large.jsonl.")
    monkeypatch.setattr(index_module, "_scan", None)
    assert len(LineIndex(large)) == 12_000


def test_without_any_place_to_write_it_stays_in_memory(large, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IVLKIT_CACHE", str(tmp_path / "file"))
    large.with_name(".ivlkit").write_text("")
    assert len(LineIndex(large)) == 12_000


def test_a_worker_receives_the_path_and_not_the_numbers(large):
    found = LineIndex(large)
    sent = pickle.dumps(found)
    assert len(sent) < 1000
    assert pickle.loads(sent).line(7) == found.line(7)


def test_a_file_that_changes_meanwhile_is_refused(large, monkeypatch):
    scan = index_module._scan

    def scan_and_append(path):
        found = scan(path)
        with open(path, "ab") as file:
            file.write(b"{}\n")
        return found

    monkeypatch.setattr(index_module, "_scan", scan_and_append)
    with pytest.raises(DataError, match="changed while it was read"):
        LineIndex(large)


def test_a_file_that_is_written_anew_under_an_open_data_set_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    index = LineIndex(path)
    with open(path, "a") as file:  # more rows change none
        file.write('{"a": 4}\n')
    assert index.line(1)[0] == b'{"a": 2}\n' and len(index) == 2
    path.write_text('{"a": 1}\n{"a": 3}\n')
    with pytest.raises(DataError, match="a.jsonl: changed since it was opened; expected the rows that it had; open it"):
        index.line(1)


def test_processes_that_build_at_once_leave_one_whole_index(large):
    code = f"from ivlkit.data.datasets.index import LineIndex; print(len(LineIndex({str(large)!r})))"
    env = os.environ | {"PYTHONPATH": str(Path(ivlkit.__file__).parents[1])}
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) for _ in range(4)]
    assert [child.communicate()[0].strip() for child in children] == [b"12000"] * 4
    assert [place.suffix for place in stored(large)] == [".npy"]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="a folder; expected a JSONL file"):
        LineIndex(tmp_path)
