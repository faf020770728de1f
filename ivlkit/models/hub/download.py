"""A released model into `pretrained/<name>`: whole or not at all, never twice, and with a record of what it is.

A download grows in `<name>.part` and takes its name only when every size and hash is the hub's. A copy that is found
(in $IVLKIT_MODELS, in the hub's cache, or put there by hand) is checked and used or linked, not fetched again.
"""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import CacheNotFound
from huggingface_hub.utils import are_progress_bars_disabled, is_notebook
from tqdm import tqdm

from ...data.files import write_whole
from ...errors import CheckpointError
from ...hardware import free_bytes
from ..families import DOWNLOAD_FILE, FAMILIES, NANO_FOLDER, find_family, model_roots
from ..layouts.weight_files import read_weight_files
from . import files as hub

MARGIN_BYTES = 1_000_000_000  # left free beside the weights: runs and caches want some too


@dataclass(frozen=True)
class Download:
    """Where a model is now, which commit it is, and how it came; a path for `load` and `open`."""

    folder: Path
    revision: str | None  # commit hash; None where no one recorded it
    how: str  # "fetched", "already here", "linked from the hub's cache", …
    fetched_bytes: int = 0  # sizes of the files that this call brought over the network

    def __fspath__(self):
        return str(self.folder)

    def __repr__(self):
        size = f", {self.fetched_bytes / 1e6:,.1f} MB over the network" if self.fetched_bytes else ""
        at = f" at {self.revision[:12]}" if self.revision else ""
        return f"{self.folder}{at}: {self.how}{size}"


def download(name, *, revision=None, to=None):
    """Have a released model on disk; fetches only what is not here yet.

    A copy whose record is complete is used without asking the network. Files that exist are never overwritten.

    Args:
        name: a key ("2b", "4b", "26b"; "nano" is here already), a released name or hub id, or a model folder, which is
            used as it is.
        revision: branch, tag or commit of the hub; default: whatever is here, else the hub's main.
        to: folder of the model; default `pretrained/<name>`, or below $IVLKIT_MODELS if that can be written.
    Returns: `Download`; `ivl.load` takes it, and `ivl.load("2b")` finds the same folder unless `to` is elsewhere.
    Raises: CheckpointError in one line with what to do: no network, no access, no space, a wrong hash, …
    """
    family = _family(name)
    if family is None:
        return _own_folder(Path(name), revision, to)
    if family.hub_id is None:
        return Download(NANO_FOLDER, None, "ships with the package")
    named = os.environ.get("IVLKIT_MODELS")
    root = Path(named) if named and os.access(named, os.W_OK) else Path("pretrained")
    target = Path(to) if to else root / family.name
    places = [target] if to else list(dict.fromkeys((target, *(root / family.name for root in model_roots()))))
    try:
        if here := _recorded(places, revision):
            return here
        with _locked(target):
            return _recorded(places, revision) or _bring(family, target, places, revision)
    except (hub.HTTP_ERROR, OSError, CheckpointError) as error:
        explained = hub.explain(error, key=family.key, repo_id=family.hub_id, revision=revision, folder=target)
        if explained is None:
            raise
        raise explained from error


def _family(name):
    """The family of a key, a released name or a hub id; None for a folder."""
    family = find_family(str(name))
    if family or Path(name).is_dir():
        return family
    raise CheckpointError(f"{name}: no folder and no released model; expected a folder or one of {', '.join(FAMILIES)}")


def _own_folder(folder, revision, to):
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: has no config.json; expected a model folder, or one of {', '.join(FAMILIES)}")
    found = (read_record(folder) or {}).get("revision")
    if to or revision not in (None, found):
        raise CheckpointError(f"{folder}: a folder of yours; nothing is fetched into it; leave out revision and to")
    return Download(folder, found, "a folder of yours")


def read_record(folder):
    """What `download` wrote beside the weights: hub_id, revision, endpoint, files; None for a folder without it.

    Raises: CheckpointError if the record is broken.
    """
    path = Path(folder) / DOWNLOAD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files = [hub.RemoteFile(name, each["size"], each["digest"]) for name, each in record["files"].items()]
        return record | {"files": files, "revision": record["revision"]}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: broken ({error}); expected what a download wrote; remove it") from error


def _write_record(folder, family, commit, files):
    record = {"hub_id": family.hub_id, "revision": commit, "endpoint": hub.endpoint()}
    record["files"] = {file.name: {"size": file.size, "digest": file.digest} for file in files}
    write_whole(folder / DOWNLOAD_FILE, json.dumps(record, indent=1) + "\n")


def _recorded(places, revision):
    """The first place with a record whose files are all there in size, if it is the revision asked for."""
    for folder in places:
        record = read_record(folder)
        if record and revision in (None, record["revision"]) and _has_sizes(folder, record["files"]):
            return Download(folder, record["revision"], "already here")
    return None


def _has_sizes(folder, files):
    return all(file.has_size(folder / file.name) for file in files)


def _locked(target):
    """One process at a time brings a model to a folder; the second waits and says so."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"{target}: another process is downloading it; waiting for it to end …", file=sys.stderr)
        return lock.acquire()


def _bring(family, target, places, revision):
    if hub.is_offline():
        return _without_network(family, target, places, revision, None)
    try:
        commit, files = hub.list_files(family.hub_id, revision=revision)
    except hub.HTTP_ERROR as error:
        if getattr(error, "response", None) is not None:
            raise
        return _without_network(family, target, places, revision, error)
    if here := _recorded(places, commit):  # a branch or tag was asked for
        return here
    for folder in places:
        if _has_sizes(folder, files) and _has_hashes(folder, files):  # something else put it there
            if os.access(folder, os.W_OK):
                _write_record(folder, family, commit, files)
            return Download(folder, commit, "already here; sizes and hashes are the hub's")
    return _assemble(family, target, commit, files, sources=_sources(family, places, files))


def _has_hashes(folder, files):
    with _progress("checking", sum(file.size for file in files)) as advance:
        return all(file.has_digest(folder / file.name, advance) for file in files)


def _without_network(family, target, places, revision, error):
    """Use a copy that looks whole; nobody can be asked what it should be, and the result says so."""
    why = "HF_HUB_OFFLINE is set" if error is None else "the hub can't be reached"
    if cached := _cached_snapshot(family, revision):
        commit, files = cached
        return _assemble(family, target, commit, files, sources=_sources(family, [], files), note=f"; {why}")
    if revision is None:
        for folder in places:
            if _looks_whole(folder):
                return Download(folder, None, f"already here, hashes unknown; {why}")
    if error is not None:
        raise error
    wanted, looked = f" of {revision}" if revision else "", " or ".join(map(str, places))
    raise CheckpointError(
        f"{why}, and no complete copy{wanted} is in {looked} or in the hub's cache; expected one; "
        "unset HF_HUB_OFFLINE, or copy the folder from a machine that has it"
    )


def _looks_whole(folder):
    try:
        read_weight_files(folder)
    except CheckpointError:
        return False
    return (folder / "config.json").is_file() and (folder / "tokenizer.model").is_file()


def _cached_snapshot(family, revision):
    """(commit, files) of a complete snapshot in the hub's cache; its blobs are named by their hashes."""
    config = try_to_load_from_cache(family.hub_id, "config.json", cache_dir=hub.cache_folder(), revision=revision)
    folder = Path(config).parent if isinstance(config, str) else None
    if folder is None or not _looks_whole(folder):
        return None
    paths = [path for path in sorted(folder.iterdir()) if hub.is_needed(path.name) and path.is_file()]
    return folder.name, [hub.RemoteFile(path.name, path.stat().st_size, _blob_digest(path)) for path in paths]


def _blob_digest(path):
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    kind = {64: "sha256", 40: "git-sha1"}.get(len(name))
    return f"{kind}:{name}" if kind else hub.file_digest(path, "sha256")


def _sources(family, places, files):
    """{file name: paths that may hold it}: the hub's cache at any commit, and folders of other roots."""
    try:
        repos = [repo for repo in scan_cache_dir(hub.cache_folder()).repos if repo.repo_id == family.hub_id]
    except CacheNotFound:
        repos = []
    cached = [one for repo in repos for revision in repo.revisions for one in revision.files]
    found = {}
    for file in files:
        blobs = {one.blob_path for one in cached if one.file_name == file.name}
        found[file.name] = [*blobs, *(folder / file.name for folder in places)]
    return found


def _assemble(family, target, commit, files, *, sources, note=""):
    """Link what is elsewhere on disk, fetch the rest, prove every file, and only then give the folder its name."""
    missing = _missing(target, files, commit)
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    _remove_rest(part, files)
    linked = [file for file in missing if _link(sources[file.name], file, part / file.name)]
    wanted = [file for file in missing if file not in linked and not file.is_at(part / file.name)]
    fetched_bytes = sum(file.size for file in wanted)
    _check_space(target, fetched_bytes)
    with _progress(family.name, fetched_bytes) as advance:
        for file in sorted(wanted, key=lambda file: file.size):  # one at a time: Xet divides it, and a kill costs one
            hub.fetch(family.hub_id, commit, file, folder=part)
            advance(file.size)
    _finish(part, target, family=family, commit=commit, files=files)
    how = "fetched" if wanted else "completed"
    if linked:
        size_gb, rest = sum(file.size for file in linked) / 1e9, ", the rest fetched" if wanted else ""
        how = f"{size_gb:.1f} GB linked from a copy on this disk{rest}"
    return Download(target, commit, f"{how}; sizes and hashes are the hub's{note}", fetched_bytes)


def _missing(target, files, commit):
    """Files that `target` lacks. One that it has but that differs is the user's: it is named, never replaced."""
    for file in files:
        path = target / file.name
        if path.exists() and not file.is_at(path):
            raise CheckpointError(
                f"{path} ({path.stat().st_size:,} bytes) differs from {file.name} of {commit[:12]}; expected "
                f"{file.size:,} bytes with {file.digest}; it is never overwritten: remove it, or choose another --to"
            )
    return [file for file in files if not (target / file.name).exists()]


def _link(sources, file, path):
    """Whether a proved copy was linked to `path`; where the system has no symbolic links it is copied."""
    source = next((source for source in sources if source.parent != path.parent and file.is_at(source)), None)
    if source is None:
        return False
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, path)
    return True


def _check_space(target, missing_bytes):
    free, needed = free_bytes(target.parent), missing_bytes + MARGIN_BYTES
    if missing_bytes and free < needed:
        raise CheckpointError(
            f"{needed / 1e9:.1f} GB needed ({missing_bytes / 1e9:.1f} GB to fetch, {MARGIN_BYTES / 1e9:.1f} to spare) "
            f"but {free / 1e9:.1f} GB free in {target.parent}; free some space, or choose another disk: --to or "
            "IVLKIT_MODELS"
        )


def _finish(part, target, *, family, commit, files):
    """The folder gets its name in one step; one that was there already gets what it lacked, its config.json last."""
    if not target.exists():
        _write_record(part, family, commit, files)
        _remove_rest(part, files)
        part.rename(target)
        return
    for file in sorted(files, key=lambda file: file.name == "config.json"):
        if (part / file.name).exists() and not (target / file.name).exists():
            (part / file.name).rename(target / file.name)
    _write_record(target, family, commit, files)
    shutil.rmtree(part)


def _remove_rest(part, files):
    """What a killed download left: half a file, up to 5 GB, under a name that no later process goes on with."""
    for path in part.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in {DOWNLOAD_FILE, *(file.name for file in files)}:
            path.unlink()


@contextmanager
def _progress(title, total):
    """A bar of bytes in a terminal or notebook, nothing in a pipe; yields what moves it."""
    hidden = True if are_progress_bars_disabled() else (False if is_notebook() else None)
    file = sys.stdout if is_notebook() else sys.stderr
    with tqdm(desc=title, total=total, unit="B", unit_scale=True, disable=hidden, file=file, delay=0.5) as bar:
        yield bar.update
