"""What to draw, as a person writes it: on the command line, as a file of layouts, or one of the READMEs' examples."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError, DataError
from atelier.storage.atomic import os_errors


@dataclass(frozen=True)
class Request:
    """One picture to draw.

    Attributes:
        prompt: the caption; may be empty.
        boxes: normalised xyxy.
        phrases: one a box.
        negative: what the picture shall not show.
        seed: of the noise; None: the command's.
    """

    prompt: str
    boxes: list[list[float]] = field(default_factory=list)
    phrases: list[str] = field(default_factory=list)
    negative: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Preset:
    """A README's example: the request, and the settings that it was shown with."""

    request: Request
    steps: int
    guidance: float
    beta: float


PRESETS = {
    "landscape": Preset(
        Request(
            "A realistic image of landscape scene depicting a green car parking on the left of a blue truck, "
            "with a red air balloon and a bird in the sky",
            [
                [0.041015625, 0.548828125, 0.453125, 0.859375],
                [0.525390625, 0.552734375, 0.93359375, 0.865234375],
                [0.12890625, 0.015625, 0.412109375, 0.279296875],
                [0.578125, 0.08203125, 0.857421875, 0.27734375],
            ],
            ["a green car", "a blue truck", "a red air balloon", "a bird"],
            "artifacts, blurry, smooth texture, bad quality, distortions, unrealistic, distorted image, "
            "bad proportions, duplicate",
        ),
        steps=50,
        guidance=7.5,
        beta=1.0,
    ),
    "grassland": Preset(
        Request("An image of grassland with a dog.", [[0.1, 0.6, 0.3, 0.8]], ["a dog"]),
        steps=50,
        guidance=5.0,
        beta=0.4,
    ),
}


def parse_box(text: str) -> tuple[list[float], str]:
    """A box and its phrase from ``"x0,y0,x1,y1=a green car"``.

    Raises:
        ConfigError: quotes the text.
    """
    numbers, equals, phrase = text.partition("=")
    try:
        box = [float(number) for number in numbers.split(",")]
    except ValueError:
        box = []
    if not equals or len(box) != 4:
        raise ConfigError(f"--box {text!r} is not four numbers and a phrase", 'write "0.1,0.6,0.3,0.8=a dog"')
    return box, phrase.strip()


def read_requests(path: Path) -> list[Request]:
    """The requests of a JSON-lines file, one object a line; empty lines are passed over.

    Raises:
        ConfigError: names the line and what is wrong with it.
        StorageError: the file cannot be read.
    """
    with os_errors(path):
        text = path.read_text(encoding="utf-8")
    requests = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                requests.append(_request(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ConfigError(
                    f"{path}, line {number}: {error}",
                    'write {"prompt": "…", "boxes": [[0.1, 0.6, 0.3, 0.8]], "phrases": ["a dog"]} on one line',
                ) from error
    if not requests:
        raise ConfigError(f"{path} holds no layout", "write one JSON object a line")
    return requests


def prompt_requests(path: Path) -> list[Request]:
    """Prompts of a ``.jsonl`` (``{"prompt": …}`` a line, ``seed`` too if wanted) or of any other file (one a line).

    Other fields of a line are passed over, so that GenEval's file is one of prompts too.

    Raises:
        DataError: names the line and what is wrong with it, or there is no prompt. StorageError: it cannot be read.
    """
    with os_errors(path):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no UTF-8 text ({error})", "give a file of prompts") from error
    requests = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            requests.append(_prompt(path, number, line) if path.suffix == ".jsonl" else Request(line.strip()))
    if not requests:
        raise DataError(f"{path} holds no prompt", "write one a line")
    return requests


def _prompt(path: Path, number: int, line: str) -> Request:
    fix = 'write {"prompt": "…"} on one line'
    try:
        found = json.loads(line)
        prompt, seed = found["prompt"], found.get("seed")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}, line {number}: no JSON object with a prompt ({type(error).__name__}: {error})", fix
        ) from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{path}, line {number}: the prompt is {prompt!r}", fix)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise DataError(f"{path}, line {number}: the seed is {seed!r}", "write a whole number, or leave it out")
    return Request(prompt.strip(), seed=seed)


def _request(found: Any) -> Request:
    if not isinstance(found, dict):
        raise TypeError("not an object")
    unknown = sorted(found.keys() - {"prompt", "boxes", "phrases", "negative", "seed"})
    if unknown:
        raise ValueError(f"unknown field {', '.join(unknown)}")
    if "prompt" not in found:
        raise ValueError("no prompt")
    kinds: dict[str, tuple[type, ...]] = {
        "prompt": (str,),
        "boxes": (list,),
        "phrases": (list,),
        "negative": (str,),
        "seed": (int,),
    }
    for name, value in found.items():
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")
    return Request(**found)
