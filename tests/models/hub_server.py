"""A hub on loopback: the routes that huggingface_hub asks, with every fault a network has, on demand."""

import hashlib
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 100_000  # from here on a file is a large one: named by sha256, served by the other host


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer:
    """Serves one repository. `revisions`: {branch, tag or commit: {file name: bytes}}; change the faults at will."""

    def __init__(self, repo_id, files):
        self.repo_id, self.revisions, self.commits = repo_id, {}, {}
        self.commit("main", files)
        self.requests = []  # (method, path, Range, token)
        self.sent = {}  # bytes served, by file name
        self.status = {}  # {part of a path: status to answer}
        self.busy = {}  # {part of a path: how many requests are answered with 503 first}
        self.drop_after = {}  # {file name: [bytes after which the connection drops, one for each GET]}
        self.hold_after = {}  # {file name: bytes after which no more comes, until the client is gone}
        self.held = threading.Event()  # set when it came to that
        self.lies = {}  # {file name: other bytes of the same or another length}
        self.ignores_range = False
        self.token = None  # required when set
        self.seconds_per_chunk = 0.0
        self.page = None  # answers everything: not a hub
        self.lock = threading.Lock()
        server = self

        class Handler(_Handler):
            hub = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def commit(self, branch, files):
        """Make a commit of these files and let the branch name it; returns its hash."""
        sha = hashlib.sha1(repr(sorted((k, git_sha1(v)) for k, v in files.items())).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.revisions[branch] = self.revisions[sha] = sha
        return sha

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def gets(self, name):
        """Ranges of the GETs that reached a large file's bytes."""
        reached = [(path, span) for method, path, span, _ in self.requests if method == "GET"]
        return [span for path, span in reached if path.startswith("/store/") and path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        token = self.headers.get("authorization")
        with hub.lock:
            hub.requests.append((self.command, path, self.headers.get("Range"), token))
        for part, count in hub.busy.items():
            if part in path and count:
                hub.busy[part] = count - 1
                return self._send(503, b"busy")
        for part, status in hub.status.items():
            if part in path:
                return self._send(status, b"no", {"X-Error-Code": "GatedRepo"} if status == 403 else {})
        if hub.page is not None:
            return self._send(200, hub.page, {"Content-Type": "text/html"})
        if path.startswith("/store/"):
            return self._store(path.removeprefix("/store/"))
        if hub.token and token != f"Bearer {hub.token}":
            return self._send(401, b"{}")
        if path.startswith("/api/models/"):
            return self._api(path.removeprefix("/api/models/"))
        return self._resolve(path)

    def _api(self, path):
        if not path.startswith(self.hub.repo_id):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        kind, _, revision = path.removeprefix(self.hub.repo_id).strip("/").partition("/")
        sha = self.hub.revisions.get(revision.strip("/") or "main")
        if sha is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.hub.commits[sha]
        if kind == "tree":
            return self._json([_tree_entry(name, data) for name, data in files.items()])
        return self._json(
            {"id": self.hub.repo_id, "sha": sha, "siblings": [_sibling(name, data) for name, data in files.items()]}
        )

    def _resolve(self, path):
        repo, found, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        sha = self.hub.revisions.get(revision)
        if repo != self.hub.repo_id or not found or sha is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        data = self.hub.commits[sha].get(name)
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        digest = hashlib.sha256(data).hexdigest() if len(data) >= LARGE_BYTES else git_sha1(data)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{digest}"'}
        if len(data) < LARGE_BYTES:
            return self._bytes(name, data, headers)
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(self.hub.lies.get(name, data)))}
        store = f"http://localhost:{self.hub.port}/store/{sha}/{name}"  # another host than 127.0.0.1
        return self._send(302, b"", headers | {"Location": store})

    def _store(self, path):
        sha, _, name = path.partition("/")
        self._bytes(name, self.hub.commits[sha][name], {"ETag": '"another one"'})

    def _bytes(self, name, data, headers):
        hub = self.hub
        data = hub.lies.get(name, data)
        span, start, status = self.headers.get("Range"), 0, 200
        if span and not hub.ignores_range:
            start = int(span.removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data) - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._write(name, data[start:])

    def _write(self, name, data):
        hub = self.hub
        drops = hub.drop_after.get(name)
        limit = drops.pop(0) if drops else None
        for place in range(0, len(data), 65536):
            chunk = data[place : place + 65536]
            if limit is not None and place + len(chunk) > limit:
                self.close_connection = True
                self.wfile.flush()
                return self.connection.shutdown(2)
            if place + len(chunk) > hub.hold_after.get(name, len(data)):
                hub.held.set()
                self.close_connection = True
                with suppress(ConnectionError):
                    self.rfile.read(1)
                return
            time.sleep(hub.seconds_per_chunk)
            self.wfile.write(chunk)
            with hub.lock:
                hub.sent[name] = hub.sent.get(name, 0) + len(chunk)

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, body, headers=None):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _lfs(data, key):
    return {key: hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}


def _sibling(name, data):
    entry = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
    return entry | ({"lfs": _lfs(data, "sha256")} if len(data) >= LARGE_BYTES else {})


def _tree_entry(name, data):
    entry = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
    return entry | ({"lfs": _lfs(data, "oid")} if len(data) >= LARGE_BYTES else {})
