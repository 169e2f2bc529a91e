"""A revision's commit, asked of a server that answers as the hub does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atelier.errors import ServiceError, StorageError
from atelier.storage import hub
from atelier.storage.atomic import NotFound

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ANSWERS = {
    "/api/models/org/name": (200, ""),
    "/api/models/org/name/revision/v1": (200, ""),
    "/api/models/org/name/revision/v9": (404, "RevisionNotFound"),
    "/api/models/org/gone": (404, "RepoNotFound"),
    "/api/models/org/gated": (403, ""),
}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, code = ANSWERS[self.path.partition("?")[0]]
        body = json.dumps({"id": "org/name", "sha": COMMIT, "error": code}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        yield running
        running.shutdown()


def test_commits() -> None:
    assert hub.commit("org/name") == hub.commit("org/name", "v1") == COMMIT
    assert hub.commit("org/nobody", "f" * 40) == "f" * 40  # is one: nothing is asked


def test_errors_say_what_is_wrong(server: ThreadingHTTPServer) -> None:
    with pytest.raises(NotFound, match="org/name: no such repository or revision"):
        hub.commit("org/name", "v9")
    with pytest.raises(NotFound, match="org/gone: no such"):
        hub.commit("org/gone")
    with pytest.raises(StorageError, match="org/gated: the hub refuses"):
        hub.commit("org/gated")
    server.shutdown()
    server.server_close()
    with pytest.raises(ServiceError, match="does not answer"):
        hub.commit("org/name")
