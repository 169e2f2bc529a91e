"""A real network that fails: an HTTP proxy before a server that answers some requests with an error, late, or not."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

FAULTS = ("error 500", "reset", "reset after", "cut", "late")


class FaultyProxy:
    """Listens on loopback and passes requests on, but for a ``share`` of them.

    Those get the ``faults`` in turn: the answer 500 without reaching the server; a reset connection without reaching
    it; a reset connection after the server acted; two thirds of the answer; the answer after ``late_s`` seconds.

    Attributes:
        url: its address.
        done: what was done to how many requests.
        paths: how many times each path was answered in whole.
    """

    def __init__(
        self, upstream: str, share: float, seed: int = 0, late_s: float = 3.0, faults: Sequence[str] = FAULTS
    ) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._share, self._late_s, self._faults = share, late_s, faults
        self._random, self._lock, self._turn = random.Random(seed), threading.Lock(), 0
        self.done: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _fault(self) -> str:
        with self._lock:
            if self._random.random() >= self._share:
                self.done["nothing"] += 1
                return ""
            fault = self._faults[self._turn % len(self._faults)]
            self._turn += 1
            self.done[fault] += 1
            return fault

    def _serve(self, client: socket.socket) -> None:
        with client:
            request = _whole_request(client)
            fault = self._fault() if request else "reset"
            if fault == "reset":
                _reset(client)
                return
            if fault == "error 500":
                client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection(self._upstream) as server:
                server.sendall(request)
                answer = b""
                while block := server.recv(1 << 16):
                    answer += block
            if fault == "reset after":
                _reset(client)
                return
            if fault == "late":
                time.sleep(self._late_s)
            if fault != "cut":
                with self._lock:
                    self.paths[request.split(b" ", 2)[1].split(b"?")[0].decode()] += 1
            try:
                client.sendall(answer[: len(answer) * 2 // 3] if fault == "cut" else answer)
            except OSError:
                return  # it did not wait


def _reset(connection: socket.socket) -> None:
    """Has closing send RST instead of FIN: a linger of zero seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _whole_request(client: socket.socket) -> bytes:
    """One request with its body, asking the server to close after the answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        block = client.recv(1 << 16)
        if not block:
            return b""
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    if fields.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        lines = [line for line in lines if not line.lower().startswith(b"expect:")]
    length = int(fields.get(b"content-length", b"0"))
    while len(body) < length:
        block = client.recv(1 << 16)
        if not block:
            return b""
        body += block
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body
