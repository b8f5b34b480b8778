"""A hub on loopback: enough of the Hugging Face protocol to download dataset files, and the faults a real one shows.

It serves /api/datasets/<repo>/revision/<revision> and HEAD, GET and ranged GET of /datasets/<repo>/resolve/... over
HTTP/1.1. Point HF_ENDPOINT at ``url`` before huggingface_hub is imported, so in a subprocess.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

REPO = "tyang816/MedChatZH"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves ``files`` of one dataset at one commit.

    ``busy`` answers so many requests of a kind, such as "HEAD name", with 503 first; ``cut_after`` closes the
    connection after so many bytes of the first GET of a file. ``requests`` holds (method, path, range) of every
    request.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], busy: dict[str, int] | None = None, cut_after: int | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.busy = Counter(busy or {})
        self.cut_after = cut_after
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def gets(self, name: str) -> list[str | None]:
        """Return the range of every GET of a file, None where the whole file was asked for."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        """Keep the tests' output quiet."""

    def _answer(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        kind = f"{self.command} {path.rsplit('/', 1)[-1]}"
        if self.server.busy[kind] > 0:
            self.server.busy[kind] -= 1
            return self._send(503, b"busy")
        for prefix, serve in ((f"/api/datasets/{REPO}/", self._info), (f"/datasets/{REPO}/resolve/", self._file)):
            if path.startswith(prefix):
                return serve(path.removeprefix(prefix))
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _info(self, rest: str) -> None:
        if rest.removeprefix("revision/") not in ("main", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": name} for name in sorted(self.server.files)]
        body = json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode()
        return self._send(200, body, {"Content-Type": "application/json"})

    def _file(self, rest: str) -> None:
        revision, name = rest.split("/", 1)
        if revision not in ("main", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if name not in self.server.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = self.server.files[name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start == 0:
            return self._send(200, data, headers)
        return self._send(206, data[start:], headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._write(body, cut=status == 200 and "ETag" in (headers or {}))

    def _write(self, body: bytes, cut: bool) -> None:
        if not cut or self.server.cut_after is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: self.server.cut_after])
        self.server.cut_after = None
        self.close_connection = True
