"""Files that appear whole or not at all."""

import os

import pytest

from ivlkit.data import files
from ivlkit.data.files import write_whole


def test_a_file_is_there_with_its_folders_and_nothing_beside_it(tmp_path):
    path = write_whole(tmp_path / "deep" / "er" / "plan.json", "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert os.listdir(path.parent) == ["plan.json"]


def test_it_gets_its_name_once_it_is_on_the_disk_and_the_name_goes_there_too(tmp_path, monkeypatch):
    done, replace = [], os.replace
    monkeypatch.setattr(files, "flush", lambda path: done.append(path.name))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("renamed"), replace(*paths)))
    write_whole(tmp_path / "run.yaml", "recipe")
    assert done == ["run.yaml.part", "renamed", tmp_path.name]


def test_what_was_there_stays_if_it_is_cut_short(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "run.yaml", "before")
    monkeypatch.setattr(files, "flush", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "after")
    assert path.read_text() == "before"
    monkeypatch.undo()
    assert write_whole(path, "after").read_text() == "after"
    assert os.listdir(tmp_path) == ["run.yaml"]
