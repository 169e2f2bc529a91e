"""A model's pictures of many prompts in a folder: each has a number, a prompt and a seed, so that drawing goes on."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.progress import Progress
from atelier.sampling.text_drawing import Drawing
from atelier.storage.atomic import write_json
from atelier.storage.digest import sha256_file, sha256_json

SETTINGS = "settings.json"
IMAGES = "images"
POLL_S = 0.5


@dataclass(frozen=True)
class Wanted:
    """A picture: its number, what it shows, and the seed that it is drawn from."""

    number: int
    prompt: str
    seed: int

    def path(self, folder: Path) -> Path:
        """Where it lies; a thousand a folder. Another prompt or seed of the same number is another file."""
        digest = sha256_json([self.prompt, self.seed])[:8]
        return folder / IMAGES / f"{self.number // 1000:03d}" / f"{self.number:06d}-{digest}.png"


def wanted(prompts: Sequence[str], seed: int, each: int = 1) -> list[Wanted]:
    """``each`` pictures of every prompt; the seed of number n is ``seed`` · 1,000,003 + n."""
    repeated = [prompt for prompt in prompts for _ in range(each)]
    return [Wanted(number, prompt, seed * 1_000_003 + number) for number, prompt in enumerate(repeated)]


def model_digest(folder: Path) -> str:
    """Of a model's files' contents."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sha256_json({name: sha256_file(folder / name) for name in names})


def settle(folder: Path, drawing: Drawing) -> dict[str, Any]:
    """Notes in ``settings.json`` what the folder's pictures are drawn by, or compares with what it says.

    Raises:
        ConfigError: its pictures were drawn otherwise.
    """
    said = {key: value for key, value in asdict(drawing).items() if key not in ("model", "batch", "device")}
    now = said | {"dtype": drawing.precision(), "model": model_digest(drawing.model)}
    path = folder / SETTINGS
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON ({error})", "take another folder") from error
        other = [name for name, value in now.items() if before.get(name) != value]
        if other:
            raise ConfigError(
                f"the pictures in {folder} were drawn with another {', '.join(other)}", "take another folder"
            )
    else:
        write_json(path, now)
    return now


def draw(folder: Path, drawing: Drawing, pictures: Sequence[Wanted]) -> int:
    """Draws those that are not there yet; how many those were.

    Raises:
        ConfigError: the model is none. StorageError: the folder cannot be written.
    """
    missing = [one for one in pictures if not one.path(folder).is_file()]
    if not missing:
        return 0
    pipeline = drawing.open()
    progress = Progress("drawing", len(pictures), "pictures", start=len(pictures) - len(missing))
    for begin in range(0, len(missing), drawing.batch):
        batch = missing[begin : begin + drawing.batch]
        images = drawing.draw(pipeline, [one.prompt for one in batch], [one.seed for one in batch])
        for one, image in zip(batch, images, strict=True):
            drawing.save(image, one.path(folder), prompt=one.prompt, seed=one.seed)
        progress.advance(len(batch))
    return len(missing)


def wait(folder: Path, pictures: Sequence[Wanted]) -> None:
    """Waits until other processes have drawn the rest; one that dies takes this one with it (torchrun)."""
    missing = [one for one in pictures if not one.path(folder).is_file()]
    if missing:
        print(f"waiting for {len(missing):,} pictures of other processes", flush=True)
    while missing:
        time.sleep(POLL_S)
        missing = [one for one in missing if not one.path(folder).is_file()]
