"""Image digests, asked of a small registry over HTTP that knows tokens, logins and silence."""

import base64
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from atelier.errors import ConfigError, ServiceError
from atelier.orchestration import image_digests
from atelier.orchestration.profile import Images, Profile

DIGEST, OTHER = "sha256:" + "1a" * 32, "sha256:" + "2b" * 32


@dataclass
class Registry:
    """What the server holds and how it behaves."""

    host: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    guard: str = ""  # "bearer" or "basic"
    login: str = ""  # user:password
    status: int = 0
    digestless: bool = False
    slow_s: float = 0.0
    asked: list[tuple[str, str, str]] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    registry: Registry

    def log_message(self, format: str, *args: object) -> None:
        return None

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        state, said = self.registry, self.headers.get("Authorization", "")
        state.asked.append((self.path, self.headers.get("Accept", ""), said))
        time.sleep(state.slow_s)
        if state.status:
            return self.answer(state.status, {"Location": "https://elsewhere.invalid/login"})
        basic = f"Basic {base64.b64encode(state.login.encode()).decode()}"
        name, tag = self.path.removeprefix("/v2/").split("/manifests/")
        if state.guard == "bearer" and said != "Bearer good":
            realm = f'Bearer realm="http://{state.host}/token",service="small",scope="repository:{name}:pull"'
            return self.answer(401, {"WWW-Authenticate": realm})
        if state.guard == "basic" and said != basic:
            return self.answer(401, {"WWW-Authenticate": 'Basic realm="small"'})
        digest = state.tags.get(f"{name}:{tag}")
        if digest is None:
            return self.answer(404, {})
        return self.answer(200, {} if state.digestless else {"Docker-Content-Digest": digest})

    def do_GET(self) -> None:
        state, said = self.registry, self.headers.get("Authorization", "")
        query = parse_qs(urlsplit(self.path).query)
        if query.get("service") != ["small"] or not query["scope"][0].startswith("repository:team/"):
            return self.answer(400, {})
        if state.login and said != f"Basic {base64.b64encode(state.login.encode()).decode()}":
            return self.answer(401, {})
        return self.answer(200, {}, json.dumps({"token": "good"}).encode())


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    state = Registry()
    handler = type("Handler", (_Handler,), {"registry": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.host = f"127.0.0.1:{server.server_address[1]}"
        state.tags = {"team/python-ops:v1": DIGEST, "team/python-train:v1": OTHER, "team/bare:latest": DIGEST}
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none.json"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


def mine(registry: Registry, **references: str) -> Profile:
    return Profile(images=Images(registry=f"{registry.host}/team", tag="v1", references=references))


def test_tags_become_digests(registry: Registry) -> None:
    found = image_digests.pin(mine(registry), {"ops", "train"})
    assert found == {
        "ops": f"{registry.host}/team/python-ops@{DIGEST}",
        "train": f"{registry.host}/team/python-train@{OTHER}",
    }
    path, accept, _ = registry.asked[0]
    assert path == "/v2/team/python-ops/manifests/v1"
    assert "application/vnd.oci.image.index.v1+json" in accept
    assert image_digests.resolve(f"{registry.host}/team/bare") == DIGEST


def test_what_is_pinned_already_asks_nobody(registry: Registry, tmp_path: Path) -> None:
    whole = f"elsewhere.example/ops@{DIGEST}"
    assert image_digests.pin(mine(registry, ops=whole), {"ops"}) == {"ops": whole}
    written = tmp_path / "digests.json"
    written.write_text(json.dumps({"ops": OTHER, "train": f"r.example/t@{DIGEST}"}))
    digests = image_digests.read_digests(written)
    assert image_digests.pin(mine(registry), {"ops", "train"}, digests) == {
        "ops": f"{registry.host}/team/python-ops@{OTHER}",
        "train": f"r.example/t@{DIGEST}",
    }
    assert registry.asked == []
    with pytest.raises(ConfigError, match="the digest of image ops"):
        image_digests.pin(mine(registry), {"ops"}, {"ops": "v1"})
    written.write_text("[]")
    with pytest.raises(ConfigError, match="no object of texts"):
        image_digests.read_digests(written)


def test_a_bearer_token_is_fetched_with_dockers_login(registry: Registry, tmp_path: Path) -> None:
    registry.guard = "bearer"
    assert image_digests.resolve(f"{registry.host}/team/python-ops:v1") == DIGEST
    registry.login = "ann:pass word"
    with pytest.raises(ServiceError, match="HTTP 401"):
        image_digests.resolve(f"{registry.host}/team/python-ops:v1")
    auth = base64.b64encode(b"ann:pass word").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    assert image_digests.resolve(f"{registry.host}/team/python-ops:v1") == DIGEST
    registry.guard = "basic"
    assert image_digests.resolve(f"{registry.host}/team/python-ops:v1") == DIGEST


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": 403}, "HTTP 403"),
        ({"status": 500}, "HTTP 500"),
        ({"status": 302}, "HTTP 302"),
        ({"tags": {}}, "there is no image"),
        ({"digestless": True}, "names no digest"),
        ({"guard": "basic"}, "wants a login"),
    ],
)
def test_what_a_registry_may_answer(registry: Registry, change: dict[str, object], said: str) -> None:
    for name, value in change.items():
        setattr(registry, name, value)
    with pytest.raises(ServiceError, match=said):
        image_digests.pin(mine(registry), {"ops"})


def test_a_silent_registry_is_told_in_time_and_tags_only_where_allowed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_digests, "TIMEOUT_S", 0.3)
    registry.slow_s = 1.0
    with pytest.raises(ServiceError, match="does not answer"):
        image_digests.pin(mine(registry), {"ops"})
    assert image_digests.pin(mine(registry), {"ops"}, allow_tags=True) == {"ops": f"{registry.host}/team/python-ops:v1"}
    gone = Profile(images=Images(registry="127.0.0.1:1/team", tag="v1"))
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:1 does not answer"):
        image_digests.pin(gone, {"ops"})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("python", ("registry-1.docker.io", "library/python", "latest", "python")),
        ("team/x:1.2", ("registry-1.docker.io", "team/x", "1.2", "team/x")),
        ("ghcr.io/a/b/c:v1", ("ghcr.io", "a/b/c", "v1", "ghcr.io/a/b/c")),
        ("localhost/x", ("localhost", "x", "latest", "localhost/x")),
        ("r.example:5000/x", ("r.example:5000", "x", "latest", "r.example:5000/x")),
    ],
)
def test_references_are_taken_apart(text: str, parts: tuple[str, str, str, str]) -> None:
    found = image_digests.parse(text)
    assert (found.host, found.name, found.tag, found.shown) == parts


@pytest.mark.parametrize("text", ["Upper/case", "a b", "", "x:tag:tag", "https://x/y", "x/../y"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ConfigError, match="no image reference"):
        image_digests.parse(text)


def test_an_image_without_a_registry_needs_a_word() -> None:
    with pytest.raises(ConfigError, match="names no registry"):
        image_digests.pin(Profile(), {"ops"})
    assert image_digests.pin(Profile(images=Images(tag="v1")), {"ops"}, allow_tags=True) == {
        "ops": "atelier/python-ops:v1"
    }
