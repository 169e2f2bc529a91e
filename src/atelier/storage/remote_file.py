"""A remote file as a file object that is read from its beginning: what nobody reads is not transferred."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from atelier.errors import ServiceError, StorageError
from atelier.storage.stream import Stream
from atelier.storage.transfer import ATTEMPTS, ended_early, open_stream, pause, read_into

_BUFFER = 2**16


class RemoteFile(io.RawIOBase):
    """The bytes of ``url``, forwards; after a broken connection it goes on where it was, as ``download`` does.

    Raises (while reading):
        StorageError: no such object, no permission, or after a break another object or a server that only begins
            at the beginning. ServiceError: the server does not answer.
    """

    def __init__(self, url: str) -> None:
        self._url, self._at = url, 0
        self._stream: Stream | None = None
        self._version = ""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills ``buffer`` but at the file's end."""
        view, done, failures = memoryview(buffer).cast("B"), 0, 0
        while done < len(view):
            try:
                stream = self._opened()
                count = read_into(stream, view[done:], self._url)
                if not count and stream.total not in (None, self._at):
                    raise ended_early(self._url, self._at, stream.total or 0)
            except ServiceError:
                self._drop()
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                pause(failures)
                continue
            if not count:
                break
            failures, done, self._at = 0, done + count, self._at + count
        return done

    def close(self) -> None:
        """Closes the connection, however much is left on it."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _opened(self) -> Stream:
        if self._stream is None:
            found = open_stream(self._url, self._at)
            if self._at and (found.start != self._at or found.version != self._version):
                found.close()
                raise StorageError(f"{self._url}: cannot be read on at byte {self._at:,}, or has changed", "run again")
            self._stream, self._version = found, found.version
        return self._stream


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """A remote ``url``, buffered; the connection ends with the block."""
    with io.BufferedReader(RemoteFile(url), _BUFFER) as file:
        yield cast(IO[bytes], file)
