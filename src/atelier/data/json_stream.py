"""Reads a large JSON object element by element: COCO's instances file is 450 MB, one annotation of it 1 kB."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from atelier.errors import DataError
from atelier.storage.atomic import os_errors

CHUNK = 2**20
MAX_ELEMENT = 64 * 2**20
"""Characters of one element; COCO's longest (a crowd's run lengths) has some 20,000."""

_AFTER = tuple(",:]} \t\r\n")
_SPACE = re.compile(r"[ \t\r\n]*")


def elements(path: Path) -> Iterator[tuple[str, Any]]:
    """(member's name, element) of every element of the object's arrays, in order; other members come whole.

    Memory is that of one element and a chunk of the file.

    Raises:
        DataError: not a JSON object, damaged, or one element is too large. StorageError: it cannot be read.
    """
    try:
        with os_errors(path), path.open(encoding="utf-8") as file:
            yield from _Reader(file).object()
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not a readable JSON object ({error})", "it is damaged or incomplete; download it again"
        ) from error


class _Reader:
    """A window over the text; ``at`` is where reading goes on."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text, self._at, self._ended = file, "", 0, False
        self._decode = json.JSONDecoder().raw_decode

    def object(self) -> Iterator[tuple[str, Any]]:
        self._expect("{")
        while self._peek() != "}":
            name = self._value()
            if not isinstance(name, str):
                raise ValueError(f"a member's name is {name!r}")
            self._expect(":")
            if self._peek() == "[":
                self._expect("[")
                while self._peek() != "]":
                    yield name, self._value()
                    self._comma("]")
                self._expect("]")
            else:
                yield name, self._value()
            self._comma("}")
        self._expect("}")

    def _more(self) -> None:
        """Lets go of what was read and takes in the next chunk."""
        if self._ended:
            raise ValueError("it ends early")
        chunk = self._file.read(max(CHUNK, len(self._text) - self._at))
        self._ended = not chunk
        self._text, self._at = self._text[self._at :] + chunk, 0

    def _peek(self) -> str:
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            self._more()

    def _expect(self, sign: str) -> None:
        if (found := self._peek()) != sign:
            raise ValueError(f"{found!r} where {sign!r} belongs")
        self._at += 1

    def _comma(self, end: str) -> None:
        if self._peek() != end:
            self._expect(",")
            if self._peek() == end:
                raise ValueError(f"a comma before {end!r}")

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError:
                if self._ended:
                    raise
                end = len(self._text)
            # A number at the window's end may go on behind it ("-3", then ".5").
            if self._ended or self._text[end : end + 1] in _AFTER:
                self._at = end
                return value
            if len(self._text) - self._at > MAX_ELEMENT:
                raise ValueError(f"an element of more than {MAX_ELEMENT:,} characters")
            self._more()
