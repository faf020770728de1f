"""What the hub is asked: which files a revision has, and their bytes. Any server with the hub's routes will do.

Addresses, tokens, headers and errors are huggingface_hub's, and the bytes go through its session. Only the writing is
ours: since 2.0 the library throws a partly transferred file away when a download ends, and 4.4 GB would start anew.
"""

import errno
import hashlib
import os
import time
from dataclasses import dataclass
from fnmatch import fnmatch

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from ...errors import CheckpointError

# Weights, configuration, tokenizer, and the code that other servers want; never pictures or pickles.
NEEDED = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "model*.safetensors", "model.safetensors.index.json", "*.py", "README.md", "LICENSE*",
)  # fmt: skip
HTTP_ERROR = HfHubHTTPError.__bases__[0]  # httpx's in huggingface_hub 1, httpx2's in 2
TRIES = 5  # in a row without one new byte
WAIT_SECONDS = 1.0  # before the second try, doubled each time
CHUNK_BYTES = 8 << 20
_TRUE = {"1", "ON", "YES", "TRUE"}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR}
_PASSING = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `digest`: "sha256:…" of a large file, "git-sha1:…" of a small one, None if unknown."""

    name: str
    size: int
    digest: str | None


class Stopped(Exception):
    """A transfer that ends because another one failed or the user stopped it."""


def endpoint():
    """The hub's address: $HF_ENDPOINT as it is now (huggingface_hub reads it once, when imported), else the default."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline():
    """Whether $HF_HUB_OFFLINE (or $TRANSFORMERS_OFFLINE) forbids asking the network, as it is now."""
    named = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return named.upper() in _TRUE or constants.HF_HUB_OFFLINE


def list_files(repo_id, *, revision):
    """(commit hash, the needed files) of a branch, tag or commit; None is the default branch.

    Raises: CheckpointError if what answers is no hub, or if the weights are only pickles.
    """
    api = HfApi(endpoint=endpoint(), library_name="ivlkit")
    try:
        found = _retried(lambda: api.model_info(repo_id, revision=revision, files_metadata=True))
    except (ValueError, KeyError, TypeError) as error:  # a page of a proxy, the start page of another server
        raise CheckpointError(
            f"{endpoint()}: no answer of a hub for {repo_id} ({_first_line(error)}); is HF_ENDPOINT right?"
        ) from error
    if not found.sha or not found.siblings:
        raise CheckpointError(f"{endpoint()}: an answer without files for {repo_id}; is HF_ENDPOINT right?")
    files = tuple(_remote_file(one) for one in found.siblings if is_needed(one.rfilename))
    if not any(file.name.endswith(".safetensors") for file in files):
        raise CheckpointError(
            f"{repo_id}@{found.sha}: no safetensors; expected weights that are no pickles; ask its owner"
        )
    return found.sha, files


def is_needed(name):
    """Whether a file of the repository belongs into a model folder: True for "config.json", False for "a/b.json"."""
    return "/" not in name and "\\" not in name and any(fnmatch(name, pattern) for pattern in NEEDED)


def _remote_file(sibling):
    if sibling.lfs:
        return RemoteFile(sibling.rfilename, sibling.lfs.size, f"sha256:{sibling.lfs.sha256}")
    return RemoteFile(sibling.rfilename, sibling.size, sibling.blob_id and f"git-sha1:{sibling.blob_id}")


def file_digest(path, kind, *, advance=lambda count: None):
    """ "sha256:…" or "git-sha1:…" of a file, the latter as git names a blob: sha1("blob <size>\\0" + bytes)."""
    total = hashlib.sha256()
    if kind == "git-sha1":
        total = hashlib.sha1(f"blob {os.path.getsize(path)}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            total.update(chunk)
            advance(len(chunk))
    return f"{kind}:{total.hexdigest()}"


def fetch(repo_id, commit, file, *, path, advance, stop):
    """Append to `path` what it lacks of a file; goes on where an earlier call, or process, ended.

    Args:
        file: `RemoteFile`; its size is what must be there in the end.
        advance: called with the number of new bytes, negative when a server starts the file anew.
        stop: a `threading.Event` that ends the transfer.
    """
    url = hf_hub_url(repo_id, file.name, revision=commit, endpoint=endpoint())
    path.touch()
    failures = 0
    while (offset := path.stat().st_size) < file.size:
        try:
            _stream(url, path, size=file.size, advance=advance, stop=stop)
            error = None
        except HTTP_ERROR as caught:
            error = caught
        if _status(error) == 416:
            break
        failures = 0 if path.stat().st_size > offset else failures + 1
        if failures >= TRIES or (error and not _passes(error)):
            raise error or _wrong_size(file, path)
        if failures:
            _wait(failures, error, stop)
    if path.stat().st_size != file.size:
        raise _wrong_size(file, path)


def _stream(url, path, *, size, advance, stop):
    offset = path.stat().st_size
    headers = build_hf_headers(library_name="ivlkit") | {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # The session follows redirects to a file store and leaves the token behind when the host changes.
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        hf_raise_for_status(response)
        goes_on = response.status_code == 206
        if offset and not goes_on:
            advance(-offset)
        with path.open("ab" if goes_on else "wb") as out:
            for chunk in response.iter_bytes():  # as they arrive: a drop loses nothing that came before it
                if stop.is_set():
                    raise Stopped
                out.write(chunk)
                advance(len(chunk))
                if out.tell() > size:
                    return


def _wrong_size(file, path):
    """What was begun goes: the bytes belong to another file than the one in the list."""
    more = "more than " if path.stat().st_size > file.size else ""
    found = min(path.stat().st_size, file.size)
    path.unlink()
    return CheckpointError(
        f"{file.name}: the server has {more}{found:,} bytes; expected {file.size:,} by the hub's list; removed; "
        "call again later, or name another HF_ENDPOINT"
    )


def _status(error):
    return getattr(getattr(error, "response", None), "status_code", None)


def _passes(error):
    """Whether trying again may help: the connection failed, or the server said that it is busy."""
    return _status(error) in _PASSING or _status(error) is None


def _wait(failures, error, stop):
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    seconds = min(float(asked), 60.0) if asked.isdigit() else WAIT_SECONDS * 2 ** (failures - 1)
    if stop.wait(seconds):
        raise Stopped


def _retried(ask, tries=3):
    for number in range(1, tries):
        try:
            return ask()
        except HTTP_ERROR as error:
            if not _passes(error):
                raise
            time.sleep(WAIT_SECONDS * number)
    return ask()


def cache_folder():
    """The hub's own cache: $HF_HUB_CACHE as it is now, else what huggingface_hub read when it was imported."""
    return os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE


def explain(error, *, key, repo_id, revision, folder):
    """One line of what went wrong and what to do, as a CheckpointError; None for an error that is a defect of ours."""
    if isinstance(error, CheckpointError):
        return CheckpointError(f"{key}: {error}")
    said = _explain_http(error, repo_id, revision) if isinstance(error, HTTP_ERROR) else _explain_other(error, folder)
    return said and CheckpointError(f"{key}: {said}")


def _explain_http(error, repo_id, revision):
    status, page = _status(error), f"{endpoint()}/{repo_id}"
    if status in (401, 403) or isinstance(error, GatedRepoError):
        return (
            f"the hub refuses {repo_id} ({status}); expected access; accept its terms at {page}, then run "
            "`hf auth login` or set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}; expected a branch, tag or commit; see {page}/commits/main"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"{endpoint()} does not have {repo_id} or a file of it (404); is HF_ENDPOINT right?"
    if status == 429:
        return (
            "the hub asks to slow down (429); what is here stays; call again in a few minutes; a token raises the limit"
        )
    if status is not None:
        return f"{endpoint()} answers with an error ({status}); what is here stays; call again later"
    return (
        f"the connection to {endpoint()} failed ({type(error).__name__}: {_first_line(error)}); what is here stays; "
        "call again to go on; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT"
    )


def _explain_other(error, folder):
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids the network; unset it and call again"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of {folder} is full; what is here stays; free some space and call again, or choose another --to"
        )
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        found = f"{error.filename or folder} can't be written ({error.strerror})"
        return f"{found}; choose another place: --to or IVLKIT_MODELS"
    return None


def _first_line(error):
    return (str(error).strip().splitlines() or ["no reason given"])[0]
