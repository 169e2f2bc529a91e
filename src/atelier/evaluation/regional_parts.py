"""The figures of every box, a picture a line: what each process measured, kept over a kill, and put together."""

import json
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from atelier.evaluation.regional_yardsticks import METRICS, OBJECTS, Boxed
from atelier.storage.atomic import os_errors, write_bytes

POLL_S = 0.5
Figures = dict[str, list[float]]
"""A picture's: ``pixels`` and the metrics by name, one value a box."""


class Parts:
    """The lines of an evaluation's folder: those that are whole, and those that processes are writing.

    A line is found by its key, which names everything that its figures depend on.
    """

    def __init__(self, out: Path) -> None:
        self._whole, self._folder = out / OBJECTS, out / "parts"

    def known(self) -> dict[str, Figures]:
        """The figures by key; a line that was cut off is none."""
        found: dict[str, Figures] = {}
        for path in (self._whole, *sorted(self._folder.glob("*.jsonl"))):
            if path.is_file():
                with os_errors(path):
                    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                found |= _read(lines)
        return found

    @contextmanager
    def writing(self, rank: int) -> Iterator[TextIO]:
        """The file of a process, behind what it wrote before."""
        path = self._folder / f"{rank}.jsonl"
        with os_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # a line may have been cut off
                yield file

    def wait(self, keys: Collection[str]) -> dict[str, Figures]:
        """The figures once every key is there."""
        found, said = self.known(), False
        while missing := set(keys) - found.keys():
            if not said:
                print(f"waiting for other processes: {len(missing):,} pictures", flush=True)
            said = True
            time.sleep(POLL_S)
            found = self.known()
        return found

    def finish(self, pictures: Sequence[Boxed], keys: Sequence[str], found: dict[str, Figures]) -> None:
        """All figures in the pictures' order, with what was asked for, in the place of the processes' files."""
        write_bytes(self._whole, "".join(map(_line, pictures, keys, (found.get(key, {}) for key in keys))).encode())
        shutil.rmtree(self._folder, ignore_errors=True)


def write(file: TextIO, pictures: Sequence[Boxed], keys: Sequence[str], rows: Sequence[Figures]) -> None:
    """Some pictures' lines, on disk when this returns as far as a killed process goes."""
    file.write("".join(map(_line, pictures, keys, rows)))
    file.flush()


def _line(each: Boxed, key: str, figures: Figures) -> str:
    row: dict[str, Any] = {"key": key, "picture": each.path.name, "phrases": each.phrases, "boxes": each.boxes}
    return json.dumps(row | figures) + "\n"


def _read(lines: Iterable[str]) -> dict[str, Figures]:
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
            figures = {name: row[name] for name in ("pixels", *METRICS) if name in row}
            if figures:
                found[str(row["key"])] = figures
        except (ValueError, KeyError, TypeError):
            continue
    return found
