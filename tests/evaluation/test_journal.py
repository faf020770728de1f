import json
import subprocess
import sys
from unittest.mock import Mock

import pytest

from ivlkit.errors import DataError
from ivlkit.evaluation.journal import open_journal

PLACES = ["a:1", "a:2", "a:3"]

FULL = """
import resource, signal, sys
from ivlkit.evaluation.journal import open_journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open_journal(sys.argv[1], {"seed": 0}, ["a:1", "a:2", "a:3"]) as (known, append):
    append({0: "a"})
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
    append({1: "b" * 100})
"""


def write(folder, *batches, settings=None):
    with open_journal(folder, settings or {"seed": 0}, PLACES) as (known, append):
        for batch in batches:
            append(batch)
    return known


def test_replies_are_there_again(tmp_path):
    assert write(tmp_path / "new" / "run", {1: "b\n«é»"}, {0: ""}) == {}
    assert write(tmp_path / "new" / "run") == {1: "b\n«é»", 0: ""}


def test_a_row_of_a_file_whose_name_is_not_utf_8_is_there_again(tmp_path):
    for known in ({}, {0: "a"}):
        with open_journal(tmp_path / "run", {}, ["s\udcff.jsonl:1"]) as (found, append):
            assert found == known
            append({0: "a"})


def test_without_a_folder_nothing_is_kept():
    assert write(None, {0: "a"}) == {}


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_line_cut_off_by_a_kill_is_asked_again_and_the_next_starts_a_line(tmp_path, cut):
    write(tmp_path, {0: "first"}, {1: "second, a little longer"})
    path = tmp_path / "replies.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert write(tmp_path, {1: "again"}) == {0: "first"}
    assert write(tmp_path) == {0: "first", 1: "again"}


def test_other_settings_are_refused_with_both_values(tmp_path):
    write(tmp_path, settings={"seed": 0, "model": "abc"})
    with pytest.raises(DataError, match="holds an evaluation with model 'abc'; now it is 'xyz'"):
        write(tmp_path, settings={"seed": 0, "model": "xyz"})


def test_a_second_process_is_refused(tmp_path):
    with (
        open_journal(tmp_path, {}, PLACES),
        pytest.raises(DataError, match="another evaluation is writing"),
        open_journal(tmp_path, {}, PLACES),
    ):
        pass


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"row": 0, "where": "b:1", "reply": "x"}', "a reply of another row"),
        ('{"row": -1, "where": "a:3", "reply": "x"}', "another row"),
        ('{"row": 9, "where": "a:9", "reply": "x"}', "replies.jsonl:1: broken"),
        ('{"row": 0}', "broken"),
        ("[]", "broken"),
        ("nonsense", "broken"),
    ],
)
def test_a_line_that_is_not_ours_is_named(tmp_path, line, said):
    write(tmp_path)
    (tmp_path / "replies.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=said):
        write(tmp_path)


def test_replies_without_settings_are_refused(tmp_path):
    (tmp_path / "replies.jsonl").write_text(json.dumps({"row": 0, "where": "a:1", "reply": "x"}) + "\n")
    with pytest.raises(DataError, match=r"replies without settings\.json"):
        write(tmp_path)


def test_a_second_evaluation_in_the_same_folder_waits(tmp_path):
    waits = pytest.raises(DataError, match="another evaluation is writing here; wait for it")
    with open_journal(tmp_path, {"seed": 0}, PLACES), waits:
        write(tmp_path)


def test_a_folder_that_can_not_be_written_is_no_other_evaluation(tmp_path, monkeypatch):
    refused = PermissionError(13, "Permission denied", str(tmp_path / "replies.lock"))
    monkeypatch.setattr("ivlkit.evaluation.journal.FileLock.acquire", Mock(side_effect=refused))
    with pytest.raises(PermissionError):
        write(tmp_path)


def test_a_disk_that_fills_up_keeps_the_replies_before(tmp_path):
    """The limit of a file's size cuts a write short as a full disk does."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "replies.jsonl: can't be written (No space left on device); expected room" in done.stderr
    assert write(tmp_path / "run") == {0: "a"}
