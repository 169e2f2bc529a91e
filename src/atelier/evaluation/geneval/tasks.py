"""GenEval's prompts: ``evaluation_metadata.jsonl``, an object a line with tag, prompt, include and exclude."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.errors import DataError
from atelier.storage.atomic import os_errors

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for.

    Attributes:
        label: the class.
        count: how many; of what is excluded, from how many on it is too many.
        colour: one of ``COLOURS``, "" for any.
        relation: one of ``RELATIONS`` to what ``of`` (a place in ``include``) names, "" for none.
    """

    label: str
    count: int
    colour: str = ""
    relation: str = ""
    of: int = 0


@dataclass(frozen=True)
class Task:
    """One prompt."""

    tag: str
    prompt: str
    include: tuple[Asked, ...]
    exclude: tuple[Asked, ...] = ()


def read_tasks(path: Path) -> list[Task]:
    """The prompts of a file.

    Raises:
        DataError: a line is not of this form; it is named. StorageError: it cannot be read.
    """
    with os_errors(path):
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no UTF-8 text ({error})", _GIVE) from error
    tasks = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                tasks.append(_task(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                said = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise DataError(f"{path}, line {number}: {said}", _GIVE) from error
    if not tasks:
        raise DataError(f"{path} holds no prompt", _GIVE)
    return tasks


_GIVE = (
    'give GenEval\'s evaluation_metadata.jsonl: {"tag": …, "include": [{"class": …, "count": …}], "prompt": …} a line'
)


def _task(found: Any) -> Task:
    if not isinstance(found, Mapping):
        raise TypeError("not an object")
    include = tuple(_asked(one) for one in found["include"])
    exclude = tuple(_asked(one) for one in found.get("exclude", ()))
    if not include:
        raise ValueError("it includes nothing")
    for one in include:
        if one.relation and not (0 <= one.of < len(include) and include[one.of] is not one):
            raise ValueError(f"{one.label} is {one.relation} number {one.of} of {len(include)}")
    prompt, tag = found["prompt"], found["tag"]
    if not isinstance(prompt, str) or not isinstance(tag, str):
        raise TypeError(f"tag {tag!r} and prompt {prompt!r} must be texts")
    return Task(tag, prompt, include, exclude)


def _asked(found: Any) -> Asked:
    if not isinstance(found, Mapping) or not isinstance(found["class"], str):
        raise TypeError(f"{found!r} names no class")
    count, colour = found.get("count", 1), found.get("color", "")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count is {count!r}")
    if colour and colour not in COLOURS:
        raise ValueError(f"color is {colour!r}, not one of {', '.join(COLOURS)}")
    relation, of = found.get("position") or ("", 0)
    if relation and (relation not in RELATIONS or not isinstance(of, int)):
        raise ValueError(f"position is {found['position']!r}, not one of {', '.join(RELATIONS)} and a number")
    return Asked(found["class"], count, colour, relation, of)
