"""The members of an untrusted tar, read in one pass within limits; nothing is written to disk or followed.

Plain and gzipped tars are told apart by their first bytes, whatever the name says. A member that is no regular
file, leaves the folder or is too large comes with a ``problem`` instead of its content.
"""

import contextlib
import gzip
import io
import itertools
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple, Self, cast

from isal import igzip
from isal.igzip_lib import IsalError

from atelier.storage.atomic import os_errors, storage_error

MAX_MEMBER = 256 * 2**20
"""Bytes of a member: hundreds of times an image of SA-1B."""

MAX_EXPANSION = 50
"""A gzipped tar may unpack to this many times its own size (JPEGs: 1, SA-1B's json: 4) ..."""

EXPANSION_GRACE = 64 * 2**20
"""... plus this many bytes, so that a small one is not judged by its zero padding."""

_MAX_EXTENSION = 2**20  # a long name or a pax header, which tarfile reads into memory whole
_BLOCK = 2**16
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class TarDamaged(Exception):
    """The tar ends early, is damaged, or unpacks beyond the limit; members before that place are good."""


class Member(NamedTuple):
    """A member: its content, or the problem that it has (then ``data`` is empty)."""

    name: str
    data: bytes
    problem: str


def members(tar: Path, head: int | None = None) -> Iterator[Member]:
    """Every member but folders, in order.

    Args:
        tar: plain or gzipped.
        head: read only this many bytes of each member (the rest of a plain tar is then never read at all).

    Raises:
        TarDamaged: at the place where it cannot be read on.
        StorageError: the file is missing, or the disk fails (which is not the tar's fault).
    """
    count = itertools.count()
    with _opened(tar, count) as file:
        yield from _members(file, None, head, count)


def members_of(file: IO[bytes], size: int) -> Iterator[Member]:
    """As ``members``, of a file that can only be read forwards; no more of it is read than the members asked for.

    Args:
        file: at its beginning, buffered.
        size: bytes of the whole.

    Raises:
        TarDamaged: at the place where it cannot be read on; and what reading ``file`` raises of ours.
    """
    count = itertools.count()
    with _damage_told(count):
        yield from _members(file, size, None, count)


def _members(file: IO[bytes], size: int | None, head: int | None, count: Iterator[int]) -> Iterator[Member]:
    for member, stream in _entries(file, MAX_MEMBER, size):
        problem = _problem(member, MAX_MEMBER)
        if problem or stream is None:
            yield Member(printable(member.name), b"", problem or "not a regular file")
            continue
        wanted = member.size if head is None else min(head, member.size)
        data = stream.read(wanted)
        if len(data) != wanted:
            raise tarfile.ReadError(f"unexpected end of data in {printable(member.name)}")
        next(count)
        yield Member(printable(member.name), data, "")


def lines(tar: Path, suffix: str, longest: int) -> Iterator[bytes | None]:
    """The lines of the members whose names end with ``suffix``, of whatever size they are.

    Args:
        longest: bytes of a line; in the place of a longer one comes None.

    Raises:
        As ``members``.
    """
    count = itertools.count()
    with _opened(tar, count) as file:
        for member, stream in _entries(file, sys.maxsize):
            if stream is not None and member.name.endswith(suffix):
                yield from lines_of(stream, longest)
                next(count)


def lines_of(stream: IO[bytes], longest: int) -> Iterator[bytes | None]:
    """The lines of a stream, None in the place of one that is longer than ``longest`` bytes."""
    while line := stream.readline(longest + 1):
        if len(line) <= longest or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(longest)) and not rest.endswith(b"\n"):
            pass
        yield None


@contextlib.contextmanager
def _opened(tar: Path, read: Iterator[int]) -> Iterator[IO[bytes]]:
    """The tar's file; what is damaged in it is told with the number of members that were read."""
    with os_errors(tar), tar.open("rb") as file:
        try:
            with _damage_told(read):
                yield file
        except OSError as error:
            raise storage_error(error, tar) from error


@contextlib.contextmanager
def _damage_told(read: Iterator[int]) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, IsalError, ValueError, OverflowError, gzip.BadGzipFile) as error:  # type: ignore[misc]
        raise TarDamaged(f"after {next(read):,} files ({printable(str(error))})") from error


def printable(name: str) -> str:
    """A name from a tar as text that can be written as UTF-8 on one line."""
    clean = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in clean)[:300]


def _entries(
    file: IO[bytes], largest: int, forwards: int | None = None
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """The members' heads and contents; ``forwards`` is the size of a file in which there is no seeking."""
    packed = cast(io.BufferedReader, file).peek(2)[:2] == b"\x1f\x8b"
    if forwards is None:
        size = file.seek(0, 2)
        file.seek(0)
    else:
        size = forwards
    if not packed:
        mode: Literal["r:", "r|"] = "r:" if forwards is None else "r|"
        with tarfile.open(fileobj=file, mode=mode, bufsize=_BLOCK, tarinfo=_StrictTarInfo) as archive:
            yield from _forward(archive, largest, size, "the tar ends within {name}")
        return
    limit = MAX_EXPANSION * size + EXPANSION_GRACE
    stream = _Bounded(igzip.GzipFile(fileobj=file), limit)
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", bufsize=_BLOCK, tarinfo=_StrictTarInfo) as archive:
        yield from _forward(archive, largest, limit, "a decompression bomb: more than {limit:,} bytes")
    while stream.read(_BLOCK):  # to gzip's end mark: its checksum covers everything
        pass


def _forward(
    archive: tarfile.TarFile, largest: int, limit: int, beyond: str
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    while (member := archive.next()) is not None:
        if archive.offset <= member.offset:  # a stated size that leads back: tarfile would go round for ever
            raise tarfile.ReadError(f"a header states {member.size:,} bytes")
        if archive.offset > limit:  # tarfile would seek there, block by block
            raise tarfile.ReadError(beyond.format(name=member.name, limit=limit))
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header that it saw
        if not member.isdir():
            yield member, archive.extractfile(member) if not _problem(member, largest) else None


def _problem(member: tarfile.TarInfo, largest: int) -> str:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        return "its path leaves the folder"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if member.size > largest:
        return f"too large: {member.size:,} bytes, at most {largest:,}"
    return ""


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header, or an end without end mark, for the end of the archive; here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _EXTENSIONS and found.size > _MAX_EXTENSION):
            raise tarfile.ReadError(f"a header states {found.size:,} bytes")
        return found

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset:,}") from error


class _Bounded:
    """What is read from a decompressor, up to a limit."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._left, self._limit = stream, limit, limit

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError(f"a decompression bomb: more than {self._limit:,} bytes")
        return data
