"""Copies one remote or local file to a local path: resumable, retried, checked, whole or not at all."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from atelier.errors import AtelierError, ConfigError, DataError, ServiceError
from atelier.progress import Progress
from atelier.storage import http, s3
from atelier.storage import uri as uris
from atelier.storage.atomic import fsync_folder, os_errors
from atelier.storage.digest import sha256_file
from atelier.storage.direct import write_direct
from atelier.storage.memory_file import MemoryFile
from atelier.storage.stream import Stream

CHUNK = 2**20
ATTEMPTS = 6
_INTO = 2**22
"""Bytes at a time into memory; after each a broken transfer can go on."""


def split_fragment(url: str) -> tuple[str, dict[str, str]]:
    """Takes our own notes off a URL: ``…/x.tar#sha256=<hex>&name=sa_000000.tar`` → (``…/x.tar``, {…}).

    Raises:
        ConfigError: a sha256 that is none.
    """
    match = re.search(r"#((?:sha256|name)=[^#]*)$", url)
    if not match:
        return url, {}
    notes = dict(pair.partition("=")[::2] for pair in match.group(1).split("&"))
    if "sha256" in notes and not re.fullmatch(r"[0-9a-f]{64}", notes["sha256"]):
        raise ConfigError(f"{url}: sha256 {notes['sha256']!r} is not 64 hexadecimal digits", "correct the digest")
    return url[: match.start()], notes


def file_name(url: str) -> str:
    """What to call a local copy: the ``name`` noted in the fragment, else the last part of the path."""
    place, notes = split_fragment(url)
    path = urlsplit(place).path if uris.scheme(place) in ("http", "https") else place
    name = notes.get("name") or unquote(path.rsplit("/", 1)[-1])
    if not name or name in (".", "..") or "/" in name or "\0" in name or name.startswith("."):
        raise ConfigError(f"{url}: gives no usable file name ({name!r})", "add #name=<file name> to it")
    return name


def download(
    url: str,
    dest: Path,
    sha256: str | None = None,
    progress: bool | Callable[[int], None] = True,
    durable: bool = True,
) -> Path:
    """Makes ``dest`` hold the bytes of ``url``.

    A broken transfer leaves ``<dest>.part`` and goes on from there, in this call (up to six attempts with
    growing pauses, counted anew whenever bytes arrived) or in a later one. Two processes that want the same
    file take turns. A local source is hard-linked where the disk allows, else copied.

    Args:
        url: a path, ``file://``, ``s3://``, ``http(s)://`` or ``hf://`` (``HF_TOKEN`` for private repositories).
        dest: the local file; its folder is made.
        sha256: expected hex digest; where None, the one noted in the URL (``#sha256=…``), else the server's own
            (``hf://``) if it names one.
        progress: report bytes done; or a function that is called with each count of new bytes.
        durable: flush to disk before it appears; a cache needs not wait for that.

    Returns:
        ``dest``.

    Raises:
        StorageError: no such object, no permission, full disk. ServiceError: the server does not answer.
        DataError: the content does not have the expected sha256, twice.
    """
    url, notes = split_fragment(url)
    sha256 = sha256 or notes.get("sha256")
    with os_errors(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
    if uris.is_local(url):
        return _copy_local(uris.local_path(url), dest, sha256)
    with _turn(dest):
        if dest.is_file() and sha256 is not None and sha256_file(dest) == sha256:
            return dest
        part = dest.with_name(dest.name + ".part")
        for attempt in range(2):
            of_server = _fetch(url, part, progress)
            expected = sha256 or of_server
            found = sha256_file(part)
            if not expected or found == expected:
                break
            _version_file(part).unlink(missing_ok=True)
            part.unlink()  # bytes of an older version, or damage on the way: once more from the start
            if attempt:
                raise DataError(
                    f"{url}: sha256 is {found}, expected {expected}",
                    "the source changed or is damaged; correct the expected digest or the source",
                )
        with os_errors(dest):
            if durable:
                with part.open("rb") as file:
                    os.fsync(file.fileno())
            part.replace(dest)
            _version_file(part).unlink(missing_ok=True)
            if durable:
                fsync_folder(dest.parent)
    return dest


def download_sized(url: str, dest: Path, size: int) -> Path:
    """As ``download`` for a remote ``url``, checked by size alone and not flushed to disk.

    For a cache of content that carries its own checksums, such as training shards: hashing and flushing take longer
    than a fast server's transfer.

    Raises:
        DataError: the source has another size.
    """
    with os_errors(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
    with _turn(dest):
        if dest.is_file() and dest.stat().st_size == size:
            return dest
        part = dest.with_name(dest.name + ".part")
        _fetch(url, part, progress=False)
        with os_errors(dest):
            found = part.stat().st_size
            _version_file(part).unlink(missing_ok=True)
            if found != size:
                part.unlink()
                raise _other_size(url, found, size)
            part.replace(dest)
    return dest


def receive(url: str, dest: Path, memory: MemoryFile) -> Callable[[], None] | None:
    """As ``download_sized``, into ``memory``; nothing is written yet.

    Returns:
        What writes ``memory`` to ``dest``, past the page cache: to be called once, by any thread. Until then others who
        want ``dest`` wait. None where ``dest`` is there already, or a part of it from which a transfer can go on:
        ``memory`` holds nothing of use then.
    """
    with os_errors(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(dest.name + ".part")
    with ExitStack() as held:
        held.enter_context(_turn(dest))
        if (dest.is_file() and dest.stat().st_size == memory.size) or part.exists():
            return None
        _fetch_into(url, memory.view)
        turn = held.pop_all()

    def keep() -> None:
        with turn, os_errors(dest):
            try:
                write_direct(part, memory.padded, memory.size)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            part.replace(dest)

    return keep


def _fetch_into(url: str, view: memoryview) -> None:
    """Fills ``view`` with a file of just that size."""
    failures, start, version = 0, 0, ""
    while True:
        began = start
        try:
            with open_stream(url, start) as stream:
                if start and (stream.start != start or stream.version != version):
                    start = began = 0
                    if stream.start:
                        continue
                version = stream.version
                if stream.total not in (None, len(view)):
                    raise _other_size(url, stream.total or 0, len(view))
                while start < len(view) and (count := read_into(stream, view[start : start + _INTO], url)):
                    start += count
            if start == len(view):
                return
            raise ended_early(url, start, len(view))
        except ServiceError:
            failures = 1 if start > began else failures + 1
            if failures >= ATTEMPTS:
                raise
            pause(failures)


def open_stream(url: str, start: int) -> Stream:
    """The bytes of a remote ``url`` from ``start`` on (the server may ignore ``start``; the stream says so)."""
    if uris.scheme(url) == "s3":
        return s3.open_stream(url, start)
    if uris.scheme(url) == "hf":
        from atelier.storage import hub

        address, headers = hub.resolve(url)
        return http.open_stream(address, start, headers, shown=url)
    return http.open_stream(url, start, {}, shown=url)


def _fetch(url: str, part: Path, progress: bool | Callable[[int], None]) -> str:
    """Fills ``part`` to the end of ``url``; returns the server's own sha256, empty where it names none."""
    failures, meter = 0, None
    while True:
        start = part.stat().st_size if part.exists() else 0
        began = start
        try:
            stream = open_stream(url, start)
            with stream, os_errors(part):
                if start and (stream.start != start or stream.version != _version(part)):
                    start = began = 0  # no ranges here, or the object changed: the old bytes are of no use
                    if stream.start:
                        part.unlink()
                        continue
                _version_file(part).write_text(stream.version)
                if progress is True and meter is None and stream.total:
                    meter = Progress(f"fetching {url.rsplit('/', 1)[-1]}", stream.total, "bytes", start=start)
                with part.open("r+b" if start else "wb") as file:
                    file.seek(start)
                    while chunk := _read(stream, url):
                        file.write(chunk)
                        start += len(chunk)
                        if meter:
                            meter.to(start)
                        elif callable(progress):
                            progress(len(chunk))
                    file.truncate()
                if stream.total is not None and start != stream.total:
                    raise ended_early(url, start, stream.total)
                return stream.sha256
        except ServiceError:
            failures = 1 if start > began else failures + 1
            if failures >= ATTEMPTS:
                raise
            pause(failures)


def pause(failures: int) -> None:
    """Before the next attempt, the longer the more of them failed in a row."""
    time.sleep(min(0.2 * 2**failures, 10.0))


def ended_early(url: str, found: int, size: int) -> ServiceError:
    """Of a transfer that ended although bytes are left."""
    return ServiceError(
        f"{url}: the transfer ended after {found:,} of {size:,} bytes", "run again; it goes on where it stopped"
    )


def _other_size(url: str, found: int, size: int) -> DataError:
    return DataError(
        f"{url}: {found:,} bytes, its manifest says {size:,}", "the source changed or is damaged; make it again"
    )


def _read(stream: Stream, url: str) -> bytes:
    with _connection(url):
        return stream.read(CHUNK)


def read_into(stream: Stream, view: memoryview, url: str) -> int:
    """Fills the beginning of ``view`` and returns how many bytes came, 0 at the end; a lost connection is a
    ``ServiceError``."""
    with _connection(url):
        return stream.read_into(view)


@contextmanager
def _connection(url: str) -> Iterator[None]:
    """Turns an error while bytes are being received into ours."""
    try:
        yield
    except Exception as error:
        # urllib, http.client, urllib3 and botocore each have their own family for a lost connection; an error
        # of the disk cannot come from here.
        if isinstance(error, AtelierError):
            raise
        raise ServiceError(
            f"{url}: the connection broke ({type(error).__name__}: {error})", "run again; it goes on where it stopped"
        ) from error


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _version(part: Path) -> str | None:
    file = _version_file(part)
    return file.read_text() if file.exists() else None


def _copy_local(source: Path, dest: Path, sha256: str | None) -> Path:
    if not source.is_file():
        with os_errors(source):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    if dest.exists() and dest.samefile(source):
        return dest
    temporary = dest.with_name(f"{dest.name}.{os.getpid()}.part")
    with os_errors(dest):
        temporary.unlink(missing_ok=True)
        try:
            try:
                os.link(source.resolve(), temporary)
            except OSError:
                shutil.copyfile(source, temporary)
            if sha256 is not None and (found := sha256_file(temporary)) != sha256:
                raise DataError(
                    f"{source}: sha256 is {found}, expected {sha256}",
                    "the file changed or is damaged; correct the expected digest or the file",
                )
            temporary.replace(dest)
        finally:
            temporary.unlink(missing_ok=True)
    return dest


@contextmanager
def _turn(dest: Path) -> Iterator[None]:
    """One process at a time per destination."""
    path = dest.with_name(f".{hashlib.sha256(dest.name.encode()).hexdigest()[:16]}.lock")
    while True:
        with os_errors(path):
            lock = path.open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # The holder before us removed its lock file: ours must be the one that others now find.
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_GLOB = re.compile(r"[*?\[]")


def expand(url: str) -> list[str]:
    """The files that a pattern names, in order.

    * ``sa_{000..009}.tar``: a range with leading zeros kept, several are multiplied; ``{a,b}`` alternatives;
    * ``*``, ``?``, ``[…]``: files of a folder, an S3 prefix or a hub repository;
    * a trailing ``/``: every file in that place;
    * ``@list.txt``: one pattern a line, or ``name<TAB>URL`` as SA-1B's own list; lines that begin with ``#`` and
      a heading without URL are skipped;
    * anything else is itself; ``#sha256=…`` and ``#name=…`` at its end stay on it.

    Raises:
        DataError: a glob, folder or list that names nothing.
    """
    if url.startswith("@"):
        found = [each for line in uris.read_text(url[1:]).splitlines() for each in _expand_line(line.strip())]
        return _some(found, url)
    braces = _expand_braces(url)
    if len(braces) > 1:
        return [each for one in braces for each in expand(one)]
    url = braces[0]
    if not _GLOB.search(url.split("://", 1)[-1]) and not url.endswith("/"):
        return [url]
    if uris.scheme(url) in ("http", "https") or split_fragment(url)[1]:
        # "?" starts a query there, and web servers have no listings.
        return [url]
    pattern = url + "*" if url.endswith("/") else url
    return _some(_LISTINGS[uris.scheme(url)](pattern), url)


def _expand_line(line: str) -> list[str]:
    if not line or line.startswith("#"):
        return []
    name, tab, url = line.partition("\t")
    if not tab:
        return expand(line)
    return [f"{url.strip()}#name={name.strip()}"] if "://" in url or url.startswith("/") else []


def _some(found: list[str], pattern: str) -> list[str]:
    if not found:
        raise DataError(f"{pattern}: no file fits", "check the pattern and that the source is there")
    return found


def _expand_braces(url: str) -> list[str]:
    if match := _RANGE.search(url):
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        return [
            each
            for number in numbers
            for each in _expand_braces(f"{url[: match.start()]}{number:0{len(first)}d}{url[match.end() :]}")
        ]
    if match := re.search(r"\{([^{}]*,[^{}]*)\}", url):
        return [
            each
            for choice in match.group(1).split(",")
            for each in _expand_braces(url[: match.start()] + choice + url[match.end() :])
        ]
    return [url]


def _list_local(pattern: str) -> list[str]:
    import glob

    return sorted(name for name in glob.glob(str(uris.local_path(pattern))) if Path(name).is_file())  # noqa: PTH207


def _list_s3(pattern: str) -> list[str]:
    import fnmatch

    bucket, key = s3.split(pattern)
    prefix = _GLOB.split(key, maxsplit=1)[0].rpartition("/")[0]
    place = f"s3://{bucket}/{prefix}".rstrip("/")
    depth = key.count("/")
    keys = sorted(f"{prefix}/{name}".lstrip("/") for name in s3.sizes(place))
    return [f"s3://{bucket}/{each}" for each in keys if each.count("/") == depth and fnmatch.fnmatchcase(each, key)]


def _list_hub(pattern: str) -> list[str]:
    from atelier.storage import hub

    return hub.listing(pattern)


_LISTINGS: dict[str, Callable[[str], list[str]]] = {"file": _list_local, "s3": _list_s3, "hf": _list_hub}


def available(url: str) -> None:
    """Raises what ``download`` would raise when ``url`` cannot be opened at all; reads nothing of it."""
    if uris.is_local(url):
        path = uris.local_path(url)
        with os_errors(path):
            path.stat()
    else:
        open_stream(url, 0).close()
