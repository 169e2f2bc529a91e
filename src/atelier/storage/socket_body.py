"""An S3 answer's bytes from the socket to their place, without a copy on the way."""

import socket
from typing import Any

import urllib3

_MUCH = 2**19


class SocketBody:
    """Reads a botocore body as it does itself, and into memory past botocore's and urllib3's buffers.

    urllib3's own ``readinto`` reads new bytes and copies them, twice: more than half of the processor time that
    receiving from a fast server takes (benchmarks/README.md, ``loader_vs_s3_get``).

    Args:
        body: botocore's ``StreamingBody``.
    """

    def __init__(self, body: Any) -> None:
        self._body = body
        self._answer: Any = getattr(body, "_raw_stream", None)
        self._plain = _plain_reader(self._answer)
        self._socket = _plain_socket(self._plain)
        self._lowest = 1

    def read(self, count: int) -> bytes:
        """As the body's."""
        return self._body.read(count)  # type: ignore[no-any-return]

    def readinto(self, view: memoryview) -> int:
        """Fills the beginning of ``view``; 0 at the end.

        Raises:
            OSError, http.client.HTTPException, botocore's and urllib3's errors: the connection broke.
        """
        if self._plain is None:
            return self._body.readinto(view)  # type: ignore[no-any-return]
        self._wait_for_more(self._plain.length - len(view))
        count: int = self._plain.readinto(view)
        if self._plain.isclosed():  # at the end: the connection may serve the next request
            self._answer.release_conn()
        return count

    def _wait_for_more(self, left: int) -> None:
        """Lets the next reads sleep until much is there; ``left``: bytes that come after them.

        A server writes 64 kB at a time, and each wakes this thread, which then waits its turn among Python's.
        """
        wanted = _MUCH if left >= _MUCH else 1
        if self._socket is not None and wanted != self._lowest:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            self._lowest = wanted

    def close(self) -> None:
        """Closes the connection, if the answer was not read to its end."""
        self._body.close()


def _plain_reader(answer: Any) -> Any:
    """http.client's answer under urllib3's, where its bytes are the object's: of a known length, not encoded."""
    if type(answer) is not urllib3.HTTPResponse or answer.chunked or answer.headers.get("content-encoding"):
        return None
    reader = getattr(answer, "_fp", None)
    return reader if hasattr(reader, "readinto") and getattr(reader, "length", None) is not None else None


def _plain_socket(reader: Any) -> socket.socket | None:
    """The socket that an answer is read from; None where what it holds is encrypted, or it cannot be found."""
    found = getattr(getattr(getattr(reader, "fp", None), "raw", None), "_sock", None)
    return found if type(found) is socket.socket else None
