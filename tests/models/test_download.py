"""Downloads, against a real HTTP server on loopback with the hub's routes and a network's faults."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import snapshot_download

from ivlkit.cli import main
from ivlkit.errors import CheckpointError
from ivlkit.models.families import NANO_FOLDER, find_model
from ivlkit.models.hub import download as download_module
from ivlkit.models.hub import files as hub
from ivlkit.models.hub.download import download, read_record

REPO = "OpenGVLab/Mini-InternVL-Chat-2B-V1-5"
NAME = "Mini-InternVL-Chat-2B-V1-5"
WEIGHTS = "model.safetensors"
NANO = {path.name: path.read_bytes() for path in NANO_FOLDER.iterdir() if path.name != "MODEL_CARD.md"}
FILES = NANO | {
    "README.md": b"# a card",
    "LICENSE": b"MIT",
    "modeling_internvl_chat.py": b"raise SystemExit('never imported')\n",
    ".gitattributes": b"*.safetensors filter=lfs",
    "pytorch_model.bin": b"a pickle",
    "examples/image1.jpg": b"a picture",
    "../outside.py": b"a name that leaves the folder",
}
WANTED = {*NANO, "README.md", "LICENSE", "modeling_internvl_chat.py"}


@pytest.fixture
def server():
    hub_server = HubServer(REPO, FILES)
    yield hub_server
    hub_server.close()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, server):
    """An empty working folder and cache; the server is the hub; no second is lost between tries."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("IVLKIT_MODELS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    monkeypatch.setattr(download_module, "MARGIN_BYTES", 0)
    return work


@pytest.fixture
def target(place):
    return place / "pretrained" / NAME


def refusal(*arguments, **options):
    """The one line that a download is refused with."""
    with pytest.raises(CheckpointError) as caught:
        download("2b", *arguments, **options)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("2b: ")
    return line


def names(folder):
    return {path.name for path in folder.iterdir()}


def fill_cache(server, patterns=None):
    """Let huggingface_hub itself download into its cache; returns the snapshot."""
    cache = os.environ["HF_HUB_CACHE"]
    options = {"allow_patterns": patterns, "ignore_patterns": "../*"}  # which the library refuses as well
    return snapshot_download(REPO, cache_dir=cache, endpoint=server.endpoint, **options)


class TestAWholeDownload:
    def test_it_has_the_needed_files_and_a_record_and_nothing_else(self, server, target):
        done = download("2b")
        assert done.folder.resolve() == target
        assert names(target) == WANTED | {"download.json"}
        assert all((target / name).read_bytes() == FILES[name] for name in WANTED)
        assert names(target.parent) == {NAME, f".{NAME}.lock"}
        assert done.fetched_bytes == sum(len(FILES[name]) for name in WANTED)

    def test_the_record_holds_the_commit_sizes_and_hashes(self, server, target):
        download("2b")
        record = json.loads((target / "download.json").read_text())
        assert record["hub_id"] == REPO and record["revision"] == server.revisions["main"]
        # `printf MIT | git hash-object --stdin`
        assert record["files"]["LICENSE"] == {"size": 3, "digest": "git-sha1:8ab70c0254878ca8a5a15e98c7d32b4f7c5710c9"}
        assert record["files"][WEIGHTS]["digest"].startswith("sha256:")

    def test_it_is_the_model_that_load_finds(self, target):
        from ivlkit.models.load import load

        download("2b")
        assert find_model("2b").resolve() == target
        assert load("2b").chat("What is your name?", max_new_tokens=8).text == (
            load("nano").chat("What is your name?", max_new_tokens=8).text
        )

    def test_a_second_call_asks_no_network(self, server):
        download("2b")
        server.close()
        again = download("2b")
        assert again.how == "already here" and again.fetched_bytes == 0

    def test_nothing_is_printed_into_a_pipe(self, capfd):
        download("2b")
        assert capfd.readouterr() == ("", "")

    def test_a_terminal_sees_a_bar_of_the_bytes(self, server, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        terminal = Terminal()
        monkeypatch.setattr(download_module.sys, "stderr", terminal)
        server.seconds_per_chunk = 0.01
        download("2b")
        assert f"{NAME}: 100%" in terminal.getvalue() and "B/s" in terminal.getvalue()

    def test_nano_ships_with_the_package(self, server):
        assert download("nano").folder == NANO_FOLDER and server.requests == []

    def test_a_released_name_or_hub_id_is_a_name_too(self, target):
        assert download(REPO).folder.resolve() == target
        assert download(NAME).how == "already here"

    def test_a_name_that_is_not_released_is_refused(self):
        with pytest.raises(
            CheckpointError, match="3b: no folder and no released model; expected a folder or one of 26b, 2b, 4b"
        ):
            download("3b")

    def test_a_model_folder_is_used_as_it_is(self, server, target):
        download("2b")
        server.close()
        done = download(target)
        assert done == download(str(target)) and (done.folder, done.how, done.fetched_bytes) == (
            target,
            "a folder of yours",
            0,
        )
        assert done.revision == server.revisions["main"]
        assert download(NANO_FOLDER).revision is None

    @pytest.mark.parametrize("options", [{"revision": "v1"}, {"to": "elsewhere"}])
    def test_nothing_is_fetched_into_a_folder_of_the_user(self, options):
        with pytest.raises(CheckpointError, match="a folder of yours; nothing is fetched into it"):
            download(NANO_FOLDER, **options)

    def test_a_folder_without_a_model_is_refused(self, place):
        with pytest.raises(CheckpointError, match="work: has no config.json; expected a model folder"):
            download(place)

    def test_another_folder_may_be_named(self, place):
        assert download("2b", to=place / "other").folder == place / "other"
        assert names(place / "other") == WANTED | {"download.json"}

    def test_the_folder_of_the_variable_is_taken_where_it_can_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "models").mkdir()
        monkeypatch.setenv("IVLKIT_MODELS", str(tmp_path / "models"))
        assert download("2b").folder == tmp_path / "models" / NAME
        assert find_model("2b") == tmp_path / "models" / NAME


class TestRevisions:
    @pytest.fixture
    def first(self, server):
        """The commit before main's."""
        first = server.revisions["main"]
        server.revisions["v1.5"] = first
        server.commit("main", FILES | {"README.md": b"# a newer card"})
        return first

    @pytest.mark.parametrize("kind", ["tag", "commit"])
    def test_an_earlier_one_can_be_pinned(self, first, target, kind):
        done = download("2b", revision={"tag": "v1.5", "commit": first}[kind])
        assert done.revision == first and (target / "README.md").read_bytes() == b"# a card"

    def test_without_a_revision_what_is_here_stays(self, first):
        download("2b", revision=first)
        assert download("2b").revision == first

    def test_another_revision_never_overwrites_the_one_that_is_here(self, first, target):
        download("2b", revision="v1.5")
        line = refusal(revision="main")
        assert "README.md (8 bytes) differs" in line and "never overwritten: remove it, or choose another --to" in line
        assert read_record(target)["revision"] == first

    def test_an_unknown_one_is_named(self):
        assert "no revision 'v9'; expected a branch, tag or commit" in refusal(revision="v9")

    def test_what_was_begun_of_another_revision_is_not_gone_on_with(self, server, target):
        server.drop_after[WEIGHTS] = [300_000] + [0] * 99
        refusal()
        server.drop_after.clear()
        newer = NANO[WEIGHTS][:-8] + b"12345678"
        server.commit("main", FILES | {WEIGHTS: newer})
        download("2b")
        assert (target / WEIGHTS).read_bytes() == newer
        assert names(target) == WANTED | {"download.json"}


class TestABadConnection:
    def test_a_drop_is_no_end(self, server, target):
        server.drop_after[WEIGHTS] = [3_000_000, 2_000_000]
        download("2b")
        assert (target / WEIGHTS).read_bytes() == NANO[WEIGHTS]
        assert len(server.gets(WEIGHTS)) == 3 and server.gets(WEIGHTS)[0] is None
        assert server.sent[WEIGHTS] <= 5_000_000 + len(NANO[WEIGHTS])

    def test_an_ended_download_goes_on_in_the_next_call(self, server, target):
        server.drop_after[WEIGHTS] = [3_000_000] + [0] * 99
        line = refusal()
        assert "the connection to http://127.0.0.1" in line and "what is here stays; call again to go on" in line
        with pytest.raises(CheckpointError, match="2b: not here, looked for it in pretrained"):
            find_model("2b")
        server.drop_after.clear()
        done = download("2b")
        assert done.fetched_bytes == len(NANO[WEIGHTS])
        assert all(server.sent[name] == len(FILES[name]) for name in WANTED - {WEIGHTS})
        assert (target / WEIGHTS).read_bytes() == NANO[WEIGHTS]

    def test_a_killed_one_brings_only_its_last_file_anew_and_leaves_nothing(self, server, target):
        server.hold_after[WEIGHTS] = len(NANO[WEIGHTS]) * 7 // 10
        code = "from ivlkit.models.hub import download as d; d.MARGIN_BYTES = 0; d.download('2b')"
        child = subprocess.Popen([sys.executable, "-c", code])
        assert server.held.wait(120)
        child.kill()
        child.wait()
        part = target.with_name(NAME + ".part")
        half = list(part.rglob("*.incomplete"))
        (part / f"{WEIGHTS}.0123456789ab.incomplete").write_bytes(b"begun by an earlier version of ivlkit")
        sent = dict(server.sent)
        server.hold_after.clear()
        assert len(half) == 1 and download("2b").fetched_bytes == len(NANO[WEIGHTS])
        assert server.sent == sent | {WEIGHTS: sent[WEIGHTS] + len(NANO[WEIGHTS])}
        assert names(target) == WANTED | {"download.json"}
        assert names(target.parent) == {NAME, f".{NAME}.lock"}

    def test_a_server_that_ignores_ranges_starts_anew(self, server, target):
        server.drop_after[WEIGHTS], server.ignores_range = [3_000_000], True
        download("2b")
        assert (target / WEIGHTS).read_bytes() == NANO[WEIGHTS]

    def test_a_busy_server_is_asked_again(self, server, target):
        server.busy["/store/"] = 2
        download("2b")
        assert (target / WEIGHTS).exists()

    def test_no_server_at_all_is_one_line(self, server, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        line = refusal()
        assert "connection to http://127.0.0.1:9 failed" in line and "HTTPS_PROXY" in line


class TestALyingServer:
    def test_other_bytes_are_found_by_their_hash_and_removed(self, server, target):
        server.lies[WEIGHTS] = bytes(len(NANO[WEIGHTS]))
        line = refusal()
        assert "model.safetensors arrived with sha256:" in line and "expected sha256:" in line and "call again" in line
        assert not target.exists()
        server.lies.clear()
        assert download("2b").folder.resolve() == target

    def test_other_bytes_of_a_small_file_are_found_too(self, server):
        server.lies["config.json"] = FILES["config.json"].replace(b"1", b"2", 1)
        assert "config.json arrived with git-sha1:" in refusal()

    @pytest.mark.parametrize(("change", "said"), [(-1000, "{sent:,} bytes"), (1000, "more than {listed:,} bytes")])
    def test_another_length_than_the_list_says_is_named(self, server, change, said, target):
        data = NANO[WEIGHTS]
        server.lies[WEIGHTS] = data[:change] if change < 0 else data + bytes(change)
        said = said.format(sent=len(server.lies[WEIGHTS]), listed=len(data))
        assert f"the server has {said}; expected {len(data):,} by the hub's list" in refusal()
        assert not target.exists()

    def test_a_page_instead_of_a_hub_is_named(self, server):
        server.page = b"<html>Please log in to the hotel's network</html>"
        assert "no answer of a hub" in refusal() and "is HF_ENDPOINT right?" in refusal()

    def test_a_repository_of_pickles_is_refused(self, server):
        server.commit("main", {"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
        assert "no safetensors; expected weights that are no pickles" in refusal()


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "said"),
        [
            (401, "refuses OpenGVLab/Mini-InternVL-Chat-2B-V1-5 (401); expected access; accept its terms at http"),
            (403, "run `hf auth login` or set HF_TOKEN"),
            (404, "does not have OpenGVLab/Mini-InternVL-Chat-2B-V1-5"),
            (429, "asks to slow down (429)"),
            (500, "answers with an error (500); what is here stays; call again later"),
        ],
    )
    @pytest.mark.parametrize("route", ["/api/", "/resolve/"])
    def test_a_status_is_one_line_with_what_to_do(self, server, status, said, route, target):
        server.status[route] = status
        assert said in refusal()
        assert not target.exists()

    def test_a_token_is_sent_to_the_hub_and_not_to_the_file_store(self, server, monkeypatch):
        server.token = "hf_secret"
        assert "(401)" in refusal()
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        download("2b")
        tokens = {(path.startswith("/store/"), token) for _, path, _, token in server.requests[1:]}
        assert tokens == {(False, "Bearer hf_secret"), (True, None)}

    def test_the_command_line_prints_it_and_exits_with_2(self, server, capsys):
        server.status["/api/"] = 404
        assert main(["download", "2b"]) == 2
        assert capsys.readouterr().err.startswith("ivlkit: 2b: ")


class TestDisk:
    def test_too_little_space_is_said_before_a_byte_is_fetched(self, server, monkeypatch):
        monkeypatch.setattr(download_module, "MARGIN_BYTES", 1_000_000_000)
        monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 900_000_000}))
        line = refusal()
        assert "1.0 GB needed (0.0 GB to fetch, 1.0 to spare) but 0.9 GB free in pretrained" in line
        assert server.sent == {}

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
    def test_a_disk_that_fills_up_is_one_line(self, monkeypatch):
        opened = Path.open

        def full(path, *arguments, **options):
            return opened(Path("/dev/full") if path.suffix == ".incomplete" else path, *arguments, **options)

        monkeypatch.setattr(Path, "open", full)
        assert "the disk of" in refusal() and "is full; what is here stays" in refusal()

    def test_a_place_that_cannot_be_written_is_named(self, monkeypatch):
        def refuse(path, *_, **__):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(download_module.Path, "mkdir", refuse)
        line = refusal()
        assert "pretrained can't be written (Permission denied); choose another place: --to or IVLKIT_MODELS" in line


class TestCopiesThatAreHere:
    def test_the_hubs_own_cache_is_linked_not_fetched(self, server, tmp_path, target):
        fill_cache(server)
        server.sent.clear()
        done = download("2b")
        assert done.fetched_bytes == 0 and server.sent == {}
        assert done.how == "0.0 GB linked from a copy on this disk; sizes and hashes are the hub's"
        assert (target / WEIGHTS).is_symlink() and (target / WEIGHTS).read_bytes() == NANO[WEIGHTS]

    def test_weights_of_an_earlier_commit_in_the_cache_are_linked(self, server, tmp_path, target):
        fill_cache(server)
        server.commit("main", FILES | {"README.md": b"# a newer card"})
        server.sent.clear()
        assert "the rest fetched" in download("2b").how
        assert server.sent == {"README.md": 14}
        assert (target / "README.md").read_bytes() == b"# a newer card"

    def test_without_network_the_cache_serves(self, server, tmp_path, monkeypatch, target):
        fill_cache(server)
        sha = server.revisions["main"]
        server.close()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        done = download("2b")
        assert done.revision == sha and done.how.endswith("HF_HUB_OFFLINE is set")
        assert read_record(target)["revision"] == sha and (target / WEIGHTS).read_bytes() == NANO[WEIGHTS]

    def test_without_network_a_damaged_blob_is_not_fetched(self, server, monkeypatch):
        (blob := Path(fill_cache(server), WEIGHTS).resolve()).write_bytes(b"damaged!" + blob.read_bytes()[8:])
        server.requests.clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert "HF_HUB_OFFLINE forbids the network; unset it and call again" in refusal()
        assert server.requests == []

    def test_a_hub_that_is_down_is_no_obstacle_to_the_cache(self, server, tmp_path, monkeypatch):
        fill_cache(server)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert download("2b").how.endswith("the hub can't be reached")

    def test_half_a_snapshot_in_the_cache_is_not_a_copy(self, server, tmp_path, monkeypatch):
        fill_cache(server, "*.json")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert "no complete copy is in pretrained" in refusal()

    def test_a_damaged_blob_in_the_cache_is_fetched_again(self, server, tmp_path, target):
        folder = fill_cache(server)
        blob = os.path.realpath(os.path.join(folder, WEIGHTS))
        with open(blob, "r+b") as file:
            file.write(b"damaged!")
        server.sent.clear()
        download("2b")
        assert (target / WEIGHTS).read_bytes() == NANO[WEIGHTS] and set(server.sent) == {WEIGHTS}

    @pytest.fixture
    def shared(self, tmp_path, monkeypatch):
        """A folder of models that this user can't write, as `os.access` tells (root can write everywhere)."""
        folder = tmp_path / "shared" / NAME
        folder.mkdir(parents=True)
        for name in WANTED:
            (folder / name).write_bytes(FILES[name])
        monkeypatch.setenv("IVLKIT_MODELS", str(folder.parent))
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: "shared" not in str(path) and access(path, mode))
        return folder

    def test_a_read_only_shared_folder_is_proved_and_used(self, server, shared, place):
        done = download("2b")
        assert done.folder == shared and done.how == "already here; sizes and hashes are the hub's"
        assert server.sent == {} and names(shared) == WANTED and not (place / "pretrained" / NAME).exists()

    def test_weights_of_a_shared_folder_that_lacks_small_files_are_linked(self, server, shared, target):
        (shared / "LICENSE").unlink()
        download("2b")
        assert server.sent == {"LICENSE": 3}
        assert (target / WEIGHTS).resolve() == shared / WEIGHTS

    def test_offline_a_shared_folder_without_record_is_used_and_said(self, shared, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        done = download("2b")
        assert done.folder == shared and done.how == "already here, hashes unknown; HF_HUB_OFFLINE is set"
        assert "no complete copy of v1.5" in refusal(revision="v1.5")

    def test_a_copy_put_there_by_hand_gets_what_it_lacks_and_a_record(self, server, target):
        target.mkdir(parents=True)
        for name in WANTED - {"LICENSE"}:
            (target / name).write_bytes(FILES[name])
        (target / "notes.txt").write_text("mine")
        download("2b")
        assert server.sent == {"LICENSE": 3}
        assert names(target) == WANTED | {"download.json", "notes.txt"}
        assert names(target.parent) == {NAME, f".{NAME}.lock"}

    def test_a_file_that_was_changed_by_hand_is_never_overwritten(self, target):
        target.mkdir(parents=True)
        (target / "config.json").write_text("{}")
        assert "config.json (2 bytes) differs" in refusal()
        assert (target / "config.json").read_text() == "{}"

    def test_a_record_whose_weights_are_gone_is_not_a_copy(self, server, target):
        download("2b")
        (target / WEIGHTS).unlink()
        server.sent.clear()
        download("2b")
        assert server.sent == {WEIGHTS: len(NANO[WEIGHTS])}

    def test_a_broken_record_is_named(self, target):
        target.mkdir(parents=True)
        (target / "download.json").write_text("[]")
        assert "download.json: broken" in refusal()


class TestTwoAtOnce:
    def test_the_second_waits_says_so_and_fetches_nothing(self, server, capfd):
        server.seconds_per_chunk = 0.01
        done = []
        threads = [threading.Thread(target=lambda: done.append(download("2b"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(one.how.split(";")[0] for one in done) == ["already here", "fetched"]
        assert server.sent[WEIGHTS] == len(NANO[WEIGHTS])
        assert "another process is downloading it; waiting" in capfd.readouterr().err


def test_every_needed_file_of_the_families_is_asked_for():
    wanted = ["config.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"]
    wanted += ["model.safetensors", "model-00001-of-00011.safetensors", "model.safetensors.index.json"]
    assert all(map(hub.is_needed, wanted))
    assert not any(map(hub.is_needed, ["pytorch_model.bin", "examples/image1.jpg", "../x.py", "a\\..\\x.py", "runs"]))
