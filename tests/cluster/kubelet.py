"""The part of a kubelet that the API server asks for containers' logs: a node of its own, over TLS."""

import http.server
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NODE = "atelier-test-node"


class Kubelet(http.server.ThreadingHTTPServer):
    """Serves ``/containerLogs/<namespace>/<pod>/<container>`` as a kubelet does.

    Attributes:
        lines: (time, text) of each pod so far.
        ended: pods whose container has ended: their logs end too.
        breaks: how many of the next answers break off after their first new lines.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lines: dict[str, list[tuple[float, str]]] = {}
        self.ended: set[str] = set()
        self.breaks = 0
        self.requests: list[str] = []
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=kubelet",
             "-keyout", str(folder / "key"), "-out", str(folder / "certificate")],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate", folder / "key")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def say(self, pod: str, text: str) -> None:
        """A container prints a line."""
        self.lines.setdefault(pod, []).append((time.time(), text))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Kubelet

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        _, kind, _namespace, pod, container = place.path.split("/")
        query = {name: values[0] for name, values in parse_qs(place.query).items()}
        assert (kind, container) == ("containerLogs", "node")
        self.server.requests.append(self.path)
        since = time.time() - float(query["sinceSeconds"]) if "sinceSeconds" in query else 0.0
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        breaks, sent = self.server.breaks > 0, 0
        self.server.breaks -= breaks
        while True:
            over = pod in self.server.ended
            lines = self.server.lines.get(pod, [])
            for moment, text in lines[sent:]:
                if moment >= since:
                    stamp = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
                    self.wfile.write(f"{stamp}000Z {text}\n".encode())
            self.wfile.flush()
            if over or query.get("follow") != "true" or (breaks and len(lines) > sent):
                return
            sent = len(lines)
            time.sleep(0.05)

    def log_message(self, *arguments: Any) -> None: ...
