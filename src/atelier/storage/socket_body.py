"""An S3 answer's bytes from the socket to their place, without a copy on the way."""

from typing import Any

import urllib3


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
        count: int = self._plain.readinto(view)
        if self._plain.isclosed():  # at the end: the connection may serve the next request
            self._answer.release_conn()
        return count

    def close(self) -> None:
        """Closes the connection, if the answer was not read to its end."""
        self._body.close()


def _plain_reader(answer: Any) -> Any:
    """http.client's answer under urllib3's, where its bytes are the object's: of a known length, not encoded."""
    if type(answer) is not urllib3.HTTPResponse or answer.chunked or answer.headers.get("content-encoding"):
        return None
    reader = getattr(answer, "_fp", None)
    return reader if hasattr(reader, "readinto") and getattr(reader, "length", None) is not None else None
