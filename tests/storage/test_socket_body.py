"""Answers of S3 read from the socket: the same bytes, the connection kept, breaks noticed."""

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

from atelier.storage import s3
from atelier.storage import uri as uris
from atelier.storage.socket_body import SocketBody

DATA = os.urandom(3 * 2**20 + 17)


def connections() -> int:
    """How many the client has opened."""
    manager = s3.client()._endpoint.http_session._manager
    return int(manager.connection_from_url(s3.endpoint()).num_connections)


@pytest.mark.parametrize("start", [0, 2**20 + 5])
def test_all_bytes_and_one_connection(s3_bucket: str, start: int) -> None:
    uri = uris.join(s3_bucket, "x")
    s3.write_bytes(uri, DATA)
    before = connections()
    for _ in range(3):
        into = memoryview(bytearray(len(DATA) - start))
        with s3.open_stream(uri, start) as stream:
            assert stream.body._plain is not None, "past the buffers"
            done = 0
            while done < len(into) and (count := stream.read_into(into[done : done + 2**20])):
                done += count
            assert stream.read_into(memoryview(bytearray(1))) == 0
        assert bytes(into) == DATA[start:]
    assert connections() <= before + 1


def test_an_answer_left_half_read_is_not_used_again(s3_bucket: str) -> None:
    uri = uris.join(s3_bucket, "x")
    s3.write_bytes(uri, DATA)
    with s3.open_stream(uri, 0) as stream:
        assert stream.read_into(memoryview(bytearray(10))) == 10
    with s3.open_stream(uri, 5) as stream:
        into = memoryview(bytearray(10))
        assert stream.read_into(into) == 10
    assert bytes(into) == DATA[5:15]


def test_a_server_that_writes_little_at_a_time_wakes_the_reader_seldom(
    trickle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    real = socket.SocketIO.readinto

    def counted(self: socket.SocketIO, view: Any) -> int | None:
        count = real(self, view)
        reads.append(count or 0)
        return count

    monkeypatch.setattr(socket.SocketIO, "readinto", counted)
    into = memoryview(bytearray(len(DATA)))
    with urllib3.PoolManager() as pool:
        answer = pool.request("GET", trickle, preload_content=False)
        body, done = SocketBody(SimpleNamespace(_raw_stream=answer, readinto=None)), 0
        while done < len(into) and (count := body.readinto(into[done : done + 2**20])):
            done += count
    assert bytes(into) == DATA
    # The last megabyte comes as it comes: nothing may be waited for that never comes.
    early = [sum(reads[:number]) < 2 * 2**20 for number in range(len(reads))]
    assert sum(early) < 12, "where 128 pieces were sent"


@pytest.fixture
def trickle() -> Iterator[str]:
    """A server that sends DATA in pieces of 16 kB, slowly."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return None

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            for start in range(0, len(DATA), 2**14):
                self.wfile.write(DATA[start : start + 2**14])
                self.wfile.flush()
                time.sleep(0.001)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Body:
    """Of another library, or encoded: it knows best how it is read."""

    _raw_stream = None

    def readinto(self, view: memoryview) -> int:
        view[:2] = b"ab"
        return 2


def test_another_body_reads_itself() -> None:
    view: Any = memoryview(bytearray(5))
    assert SocketBody(Body()).readinto(view) == 2
    assert bytes(view[:2]) == b"ab"
