"""A model hub on 127.0.0.1 that speaks what the hub client asks for, and notes which files were fetched."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`url` for HF_ENDPOINT; `fetched` are the paths whose content was sent, `tokens` the credentials seen."""

    url: str
    fetched: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)


@contextmanager
def fake_hub(models: dict[str, Path], *, gated: frozenset[str] = frozenset()) -> Iterator[Hub]:
    """Serves each folder as the hub model of its id, revisions `main` and `v1`; ids in `gated` want a token."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the test's output clean."""

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            hub.tokens.add(self.headers.get("Authorization"))
            path = self.path.split("?")[0].strip("/")
            for model, folder in models.items():
                if path.startswith((f"api/models/{model}/", f"{model}/resolve/")):
                    if model in gated and not self.headers.get("Authorization"):
                        self.answer(403, b"{}", X_Error_Code="GatedRepo")
                    else:
                        self.model(folder, path.split(f"{model}/", 1)[1])
                    return
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def model(self, folder: Path, rest: str) -> None:
            kind, revision, *parts = rest.split("/")
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if revision not in ("main", "v1", COMMIT):
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            elif kind == "revision":
                names = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
                body = {"id": "x/y", "sha": COMMIT, "siblings": names, "private": False, "tags": []}
                self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
            elif kind == "tree":
                entries = [
                    {
                        "type": "file",
                        "path": path.relative_to(folder).as_posix(),
                        "size": path.stat().st_size,
                        "oid": hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest(),
                    }
                    for path in files
                ]
                self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
            else:
                name = "/".join(parts)
                content = (folder / name).read_bytes()
                etag = '"' + hashlib.sha1(content, usedforsecurity=False).hexdigest() + '"'
                if self.command == "GET":
                    hub.fetched.append(name)
                self.answer(200, content, ETag=etag, X_Repo_Commit=COMMIT)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
