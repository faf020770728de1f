"""What the hub is asked: which files a revision has, and their bytes. Any server with the hub's routes will do.

Addresses, tokens, transfers and errors are huggingface_hub's: over Xet it brings one file in many parallel chunks.
"""

import errno
import hashlib
import os
import time
from dataclasses import dataclass
from fnmatch import fnmatch

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...errors import CheckpointError

# Weights, configuration, tokenizer, and the code that other servers want; never pictures or pickles.
NEEDED = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "model*.safetensors", "model.safetensors.index.json", "*.py", "README.md", "LICENSE*",
)  # fmt: skip
HTTP_ERROR = HfHubHTTPError.__bases__[0]  # httpx's in huggingface_hub 1, httpx2's in 2
TRIES = 3
WAIT_SECONDS = 1.0  # before the second try, twice as long before the third
CHUNK_BYTES = 8 << 20
_TRUE = {"1", "ON", "YES", "TRUE"}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR}
_PASSING = {None, 408, 429, 500, 502, 503, 504}  # None: the connection failed


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `digest`: "sha256:…" of a large file, "git-sha1:…" of a small one, None if unknown."""

    name: str
    size: int
    digest: str | None

    def has_size(self, path):
        """Whether a path is a file of its size."""
        return path.is_file() and path.stat().st_size == self.size

    def has_digest(self, path, advance=lambda count: None):
        """Whether a file has its hash; yes where the hub names none."""
        return self.digest is None or file_digest(path, self.digest.partition(":")[0], advance=advance) == self.digest

    def is_at(self, path):
        """Whether a path holds it."""
        return self.has_size(path) and self.has_digest(path)


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
            f"{endpoint()}: no answer of a hub for {repo_id} ({first_line(error)}); is HF_ENDPOINT right?"
        ) from error
    if not found.sha or not found.siblings:
        raise CheckpointError(f"{endpoint()}: an answer without files for {repo_id}; is HF_ENDPOINT right?")
    files = []
    for one in (one for one in found.siblings if is_needed(one.rfilename)):
        size, digest = one.size, one.blob_id and f"git-sha1:{one.blob_id}"
        if one.lfs:
            size, digest = one.lfs.size, f"sha256:{one.lfs.sha256}"
        files.append(RemoteFile(one.rfilename, size, digest))
    if not any(file.name.endswith(".safetensors") for file in files):
        raise CheckpointError(
            f"{repo_id}@{found.sha}: no safetensors; expected weights that are no pickles; ask its owner"
        )
    return found.sha, tuple(files)


def is_needed(name):
    """Whether a file of the repository belongs into a model folder: True for "config.json", False for "a/b.json"."""
    return "/" not in name and "\\" not in name and any(fnmatch(name, pattern) for pattern in NEEDED)


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


def fetch(repo_id, commit, file, *, folder):
    """Bring a file of a commit into a folder and prove it; what ended early starts anew in the next call.

    Args:
        file: `RemoteFile`; its size and hash are what must be there in the end.
    Raises: CheckpointError if other bytes arrived; they are removed. Else huggingface_hub's and the system's errors.
    """
    path = folder / file.name
    path.unlink(missing_ok=True)
    options = {"revision": commit, "endpoint": endpoint(), "library_name": "ivlkit", "local_files_only": is_offline()}
    options["cache_dir"] = folder / ".cache"  # an empty one: from its own the library would copy without a proof
    try:
        _retried(lambda: hf_hub_download(repo_id, file.name, local_dir=folder.absolute(), **options))
    except LocalEntryNotFoundError as error:  # the library's question for the file failed, or it may not ask
        raise error.__cause__ or OfflineModeIsEnabled() from None
    except RuntimeError as error:  # Xet's
        raise ConnectionError(first_line(error)) from error
    _prove(path, file)


def _prove(path, file):
    size, digest = path.stat().st_size, file.digest and file_digest(path, file.digest.partition(":")[0])
    if (size, digest) == (file.size, file.digest):
        return
    path.unlink()
    if size != file.size:
        found = f"{size:,}" if size < file.size else f"more than {file.size:,}"
        raise CheckpointError(
            f"{file.name}: the server has {found} bytes; expected {file.size:,} by the hub's list; removed; "
            "call again later, or name another HF_ENDPOINT"
        )
    raise CheckpointError(
        f"{file.name} arrived with {digest}; expected {file.digest}; it was removed; call again, and if that "
        f"repeats choose another HF_ENDPOINT than {endpoint()}"
    )


def _status(error):
    return getattr(getattr(error, "response", None), "status_code", None)


def _retried(ask):
    for number in range(1, TRIES):
        try:
            return ask()
        except HTTP_ERROR as error:
            if _status(error) not in _PASSING:
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
    if isinstance(error, OfflineModeIsEnabled):
        sentence = "HF_HUB_OFFLINE forbids the network; unset it and call again"
    elif isinstance(error, HTTP_ERROR) or error.errno is None:  # no error of the disk: the library's own, or Xet's
        sentence = _explain_http(error, repo_id, revision)
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        sentence = f"the disk of {folder} is full; what is here stays; free some, or choose another --to, and go on"
    elif error.errno in _NOT_WRITABLE:
        found = f"{error.filename or folder} can't be written ({error.strerror})"
        sentence = f"{found}; choose another place: --to or IVLKIT_MODELS"
    else:
        return None
    return CheckpointError(f"{key}: {sentence}")


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
        f"the connection to {endpoint()} failed ({type(error).__name__}: {first_line(error)}); what is here stays; "
        "call again to go on; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT"
    )


def first_line(error):
    """Of what an error says."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]
