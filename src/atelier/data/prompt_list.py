"""A list of prompts by the names of their pictures: JSON lines with ``img_path`` and ``prompt``, millions of them.

The form in which JourneyDB publishes its annotations (further keys, its captions and questions, are passed over) and
CrossFlow lists its training data. JourneyDB's come in a gzipped tar. Source: JourneyDB's own files
(``train_anno_realease_repath.jsonl.tgz``: ``"./000/<uuid>.jpg"``).
"""

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import numpy as np
import orjson

from atelier.data.quarantine import Quarantined
from atelier.data.sa1b import checked_text
from atelier.data.tar_stream import TarDamaged, lines, lines_of
from atelier.errors import DataError
from atelier.storage.atomic import os_errors
from atelier.storage.folder import InputFolder

MAX_LINE = 4 * 2**20
"""Bytes of a line; JourneyDB's have a few thousand."""


class PromptList:
    """The prompts of one or more lists, and the lines that are of no use.

    The texts lie in a file without a name, and 20 bytes a picture in memory: JourneyDB's four million prompts would
    take two gigabytes as a dict, in each worker.

    Args:
        folder: of the lists.
        names: the lists in it, ``.jsonl`` or tars of such.
        scratch: a folder for the texts.

    Raises:
        DataError: no line of them can be used. StorageError: a list cannot be read, or the disk is full.
    """

    def __init__(self, folder: InputFolder, names: Iterable[str], scratch: Path) -> None:
        self.bad: list[Quarantined] = []
        hashes, places, lengths = array("Q"), array("Q"), array("I")
        with os_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            self._texts = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # read for as long as the list lives
            numbers, owners = array("Q"), list[str]()
            for name in names:
                owners.append(PurePosixPath(name).name.split(".", 1)[0])
                for number, line in _numbered(folder.fetch(name), self.bad):
                    try:
                        picture, prompt = _entry(line)
                    except ValueError as error:
                        self.bad.append(Quarantined(f"{owners[-1]}-line-{number}", str(error)))
                        continue
                    text = prompt.encode()
                    hashes.append(_hash(picture))
                    places.append(self._texts.tell())
                    lengths.append(len(text))
                    numbers.append((len(owners) - 1) << 40 | number)
                    self._texts.write(text)
            self._texts.flush()
        if not hashes:
            reason = self.bad[0].reason if self.bad else "it is empty"
            raise DataError(
                f"{folder.manifest.uri}: no line of its list can be used ({reason})", "correct the list of prompts"
            )
        order = np.argsort(np.array(hashes), kind="stable")
        self._hashes, self._places = np.array(hashes)[order], np.array(places)[order]
        self._lengths = np.array(lengths)[order]
        self._note_repeated(np.array(numbers)[order], owners)

    def of(self, picture: str) -> str | None:
        """The prompt of a picture by its file name; of several lines that name it the first."""
        wanted = np.uint64(_hash(picture))
        row = int(np.searchsorted(self._hashes, wanted))
        return self._text(row) if row < len(self._hashes) and self._hashes[row] == wanted else None

    def _text(self, row: int) -> str:
        return os.pread(self._texts.fileno(), int(self._lengths[row]), int(self._places[row])).decode()

    def _note_repeated(self, numbers: np.ndarray, owners: list[str]) -> None:
        """A picture that two lines give different prompts: which is right, nobody knows."""
        for row in (1 + np.flatnonzero(self._hashes[1:] == self._hashes[:-1])).tolist():
            if self._text(row) != self._text(row - 1):
                owner, number = divmod(int(numbers[row]), 1 << 40)
                self.bad.append(Quarantined(f"{owners[owner]}-line-{number}", "another line has another prompt for it"))


def _hash(picture: str) -> int:
    return int.from_bytes(blake2b(picture.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _numbered(path: Path, bad: list[Quarantined]) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not empty, counted from 1; of a damaged tar those before the damage."""
    if path.suffix.lower() == ".jsonl":
        with os_errors(path), path.open("rb") as file:
            yield from _not_empty(lines_of(file, MAX_LINE))
        return
    try:
        yield from _not_empty(lines(path, ".jsonl", MAX_LINE))
    except TarDamaged as error:
        bad.append(Quarantined(path.name, f"damaged tar: {error}"))


def _not_empty(found: Iterator[bytes | None]) -> Iterator[tuple[int, bytes | None]]:
    return ((number, line) for number, line in enumerate(found, start=1) if line is None or line.strip())


def _entry(line: bytes | None) -> tuple[str, str]:
    """A line's file name and prompt, which may be empty.

    Raises:
        ValueError: what is wrong with it.
    """
    if line is None:
        raise ValueError(f"the line is too long: more than {MAX_LINE:,} bytes")
    try:
        found = orjson.loads(line)
    except ValueError as error:
        raise ValueError("the line is no JSON") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("img_path", "prompt")):
        raise ValueError("the line has no img_path and prompt")
    return PurePosixPath(found["img_path"]).name, checked_text(found["prompt"], "prompt")
