"""A Hugging Face Hub on loopback with one repository, for tests of downloads."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
REPOSITORY, GATED, DENIED = "someone/shapes", "someone/gated", "someone/denied"


@contextmanager
def hub_of(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the files of a folder as REPOSITORY: the address, and the paths of files that are downloaded."""
    downloaded: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            is_api = parts[:2] == ["api", "models"]
            repository, rest = ("/".join(parts[2:4]), parts[4:]) if is_api else ("/".join(parts[:2]), parts[2:])
            if repository == GATED:
                self.answer(403, error="GatedRepo")
            elif repository == DENIED:
                self.answer(403)
            elif repository != REPOSITORY:
                self.answer(401, error="RepoNotFound")
            elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
                self.answer(404, error="RevisionNotFound")
            elif is_api and rest[:1] == ["tree"]:
                self.answer(200, json.dumps(list(map(self.entry, self.names()))).encode())
            elif is_api:
                siblings = [{"rfilename": name} for name in self.names()]
                self.answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
            elif (folder / rest[2]).exists():
                if self.command == "GET":
                    downloaded.append(rest[2])
                content = (folder / rest[2]).read_bytes()
                self.answer(200, content, etag=hashlib.sha1(content).hexdigest())
            else:
                self.answer(404, error="EntryNotFound")

        do_HEAD = do_GET  # noqa: N815

        def names(self) -> list[str]:
            return sorted(path.name for path in folder.iterdir())

        def entry(self, name: str) -> dict:
            content = (folder / name).read_bytes()
            return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

        def answer(self, status: int, content: bytes = b"", error: str = "", etag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            for name, value in (("X-Error-Code", error), ("ETag", etag and f'"{etag}"')):
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests short."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloaded
    finally:
        server.shutdown()
        server.server_close()
