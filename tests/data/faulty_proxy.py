"""An HTTP proxy before an S3 server that spoils a share of the requests: 500s, resets, bodies that break off."""

import contextlib
import http.client
import http.server
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit


class FaultyProxy:
    """What the proxy does and has seen.

    Attributes:
        share: of the requests that are spoiled.
        url: its address.
        seen: how many requests met which fate: "good", "500", "reset", "half".
        gets: bytes of content handed on.
    """

    def __init__(self, target: str, share: float, seed: int) -> None:
        self.target, self.share, self.url = urlsplit(target), share, ""
        self.seen: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def fate(self) -> str:
        """What happens to the next request."""
        with self._lock:
            fate = self._random.choice(("500", "reset", "half")) if self._random.random() < self.share else "good"
            self.seen[fate] += 1
            return fate


@contextlib.contextmanager
def faulty_proxy(target: str, share: float = 0.2, seed: int = 0) -> Iterator[FaultyProxy]:
    """Runs one on loopback."""
    state = FaultyProxy(target, share, seed)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return None

        def do_GET(self) -> None:
            fate = state.fate()
            if fate == "500":
                self.send_response(500)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fate == "reset":
                # Linger of zero seconds: closing sends RST instead of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            server = http.client.HTTPConnection(state.target.hostname or "", state.target.port, timeout=60)
            server.request("GET", self.path, headers=dict(self.headers))
            answer = server.getresponse()
            body = answer.read()
            server.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fate == "half":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            else:
                with state._lock:
                    state.paths[self.path.split("?")[0]] += 1
                self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
