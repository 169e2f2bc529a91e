"""Real servers on loopback for tests: moto_server and s3rver (S3), a web server that drops connections.

Use as fixtures: ``from tests.servers import s3_bucket`` in a conftest, or name ``pytest_plugins``.
"""

import contextlib
import functools
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

S3RVER = "s3rver@3.7.1"
BUCKET = "atelier-test"


def free_port() -> int:
    """A loopback port that nothing listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(frozen=True)
class S3Server:
    """A running server and the variables that reach it."""

    name: str
    env: dict[str, str]

    @property
    def uri(self) -> str:
        """A bucket that exists."""
        return f"s3://{BUCKET}"


def _environment(port: int, key: str, secret: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def _running(name: str, command: list[str], port: int, env: dict[str, str], log: Path) -> Iterator[S3Server]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended at once: {log.read_text()[-2000:]}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
                break
            if _answers(port):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not answer within a minute: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        import boto3

        boto3.session.Session().client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        ).create_bucket(Bucket=BUCKET)
        yield S3Server(name, env)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(port: int) -> bool:
    """Whether anything speaks HTTP there; a refusal (403 without credentials) is an answer."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def moto_server(folder: Path) -> Iterator[S3Server]:
    """A moto server (any credentials do)."""
    command = Path(sys.executable).with_name("moto_server")
    if not command.exists():
        pytest.skip("moto_server is not installed: pip install 'moto[server]'")
    port = free_port()
    with _running(
        "moto",
        [str(command), "-H", "127.0.0.1", "-p", str(port)],
        port,
        _environment(port, "any", "thing"),
        folder / "moto.log",
    ) as server:
        yield server


def _s3rver_program() -> str:
    """The s3rver command, installed once into a cache folder by npm."""
    npm = shutil.which("npm")
    if not npm or not shutil.which("node"):
        pytest.skip("npm and node are not installed, so there is no s3rver")
    home = Path(os.environ.get("ATELIER_TEST_CACHE") or Path.home() / ".cache" / "atelier-tests") / S3RVER
    program = home / "node_modules" / ".bin" / "s3rver"
    if not program.exists():
        home.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--prefix", str(home), S3RVER],
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode or not program.exists():
            pytest.skip(f"npm could not install {S3RVER}: {done.stderr[-300:]}")
    return str(program)


@contextlib.contextmanager
def s3rver(folder: Path) -> Iterator[S3Server]:
    """An s3rver (checks signatures; its one key is S3RVER/S3RVER)."""
    program, port, data = _s3rver_program(), free_port(), folder / "s3rver"
    data.mkdir()
    with _running(
        "s3rver",
        [program, "-d", str(data), "-a", "127.0.0.1", "-p", str(port), "--silent"],
        port,
        _environment(port, "S3RVER", "S3RVER"),
        folder / "s3rver.log",
    ) as server:
        yield server


_SERVERS = {"moto": moto_server, "s3rver": s3rver}


@pytest.fixture(scope="session", params=sorted(_SERVERS))
def s3_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Each of the two servers, once a session."""
    with _SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A place of its own on a running S3 server, with the AWS_* variables set: ``s3://bucket/prefix``."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return f"{s3_server.uri}/{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower())}"


@dataclass
class WebServer:
    """A web server over a folder.

    Attributes:
        url: its address.
        drops: how many of the next answers break off half-way.
        ranges: whether it honours Range.
        requests: (path, Range header, Authorization header) of every request so far.
        refuse: a status that every request gets instead of an answer.
        sent: bytes of files that went out, what lies in a socket's buffers among them.
    """

    url: str = ""
    drops: int = 0
    ranges: bool = True
    refuse: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    sent: int = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object, state: WebServer, folder: Path) -> None:
        self.state, self.folder = state, folder
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        return None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        wish = self.headers.get("Range", "")
        self.state.requests.append((self.path, wish, self.headers.get("Authorization", "")))
        path = self.folder / self.path.lstrip("/")
        if self.path in self.state.redirects:
            return self._plain(302, {"Location": self.state.redirects[self.path], **self.state.headers})
        if self.state.refuse:
            return self._plain(self.state.refuse, {})
        if not path.is_file():
            return self._plain(404, {})
        data = path.read_bytes()
        start = int(wish.removeprefix("bytes=").split("-")[0]) if wish and self.state.ranges else 0
        if start >= len(data) > 0:
            return self._plain(416, {"Content-Range": f"bytes */{len(data)}", "ETag": self._etag(path)})
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", self._etag(path))
        for name, value in self.state.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        body = data[start:]
        if self.state.drops:
            self.state.drops -= 1
            self.wfile.write(body[: max(len(body) // 2, 1)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            try:
                for begin in range(0, len(body), 2**16):
                    self.state.sent += self.wfile.write(body[begin : begin + 2**16])
            except ConnectionError:  # whoever asked has seen enough
                self.close_connection = True
        return None

    @staticmethod
    def _etag(path: Path) -> str:
        return f'"{path.stat().st_mtime_ns}-{path.stat().st_size}"'

    def _plain(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[WebServer]:
    """Serves a folder over HTTP on loopback."""
    state = WebServer()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, state=state, folder=folder))  # type: ignore[arg-type]
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[WebServer, Path]]:
    """A web server and the folder that it serves."""
    folder = tmp_path / "web"
    folder.mkdir()
    with serving(folder) as state:
        yield state, folder
