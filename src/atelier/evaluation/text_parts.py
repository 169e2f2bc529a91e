"""What each process measured of its share of the pictures, laid down in files and put together by the first."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atelier.evaluation.clip_score import ClipScore
from atelier.evaluation.gaussian import Moments
from atelier.evaluation.inception_features import at_side, features, open_picture
from atelier.evaluation.text_images import Wanted
from atelier.models.inception import FEATURES, FidInception
from atelier.progress import Progress
from atelier.storage.atomic import write_json
from atelier.storage.digest import sha256_json

POLL_S = 0.5


@dataclass(frozen=True)
class Measured:
    """Features' moments (none without a network) and the CLIP scores' sum, of ``count`` pictures."""

    count: int
    moments: Moments
    clip_sum: float


@dataclass(frozen=True)
class Share:
    """A process's part of a measurement: which of how many, and a key that says what is measured.

    The key names everything that the figures depend on, so a part of an earlier, interrupted evaluation is taken over.
    """

    folder: Path
    key: str
    rank: int
    world: int

    def path(self, rank: int) -> Path:
        """Where a rank's part lies."""
        return self.folder / "parts" / f"{self.key[:16]}-{rank}-of-{self.world}.npz"

    def measured(
        self, pictures: Sequence[Wanted], network: FidInception | None, clip: ClipScore | None, batch: int
    ) -> None:
        """Measures this process's pictures and writes its part.

        Raises:
            DataError: a picture cannot be read.
        """
        if self.path(self.rank).is_file():
            return
        found = measure(self.folder, pictures, network, clip, batch)
        scores = self.path(self.rank).with_suffix(".json")
        write_json(scores, {"count": found.count, "clip_sum": found.clip_sum})
        found.moments.save(self.path(self.rank))  # last: it is what the others wait for

    def together(self, said: bool = True) -> Measured:
        """Waits for every process's part and adds them up, always in the same order."""
        total, clip_sum, moments = 0, 0.0, Moments(FEATURES)
        for rank in range(self.world):
            path = self.path(rank)
            if said and not path.is_file():
                print(f"waiting for process {rank} of {self.world}", flush=True)
            while not path.is_file():
                time.sleep(POLL_S)
            part = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            moments.merge(Moments.load(path))
            total, clip_sum = total + int(part["count"]), clip_sum + float(part["clip_sum"])
        return Measured(total, moments, clip_sum)


def key_of(pictures: Sequence[Wanted], *others: str) -> str:
    """Of what is measured: the pictures' prompts and seeds, the model, the networks."""
    return sha256_json([[(one.number, one.prompt, one.seed) for one in pictures], *others])


def measure(
    folder: Path, pictures: Sequence[Wanted], network: FidInception | None, clip: ClipScore | None, batch: int
) -> Measured:
    """Features and scores of pictures in a folder, each read once."""
    moments, clip_sum, progress = Moments(FEATURES), 0.0, Progress("measuring", len(pictures), "pictures")
    for begin in range(0, len(pictures), batch):
        chosen = pictures[begin : begin + batch]
        images = [open_picture(one.path(folder)) for one in chosen]
        if network is not None:
            moments.add(features(network, [at_side(image) for image in images]))
        if clip is not None:
            clip_sum += float(np.sum(clip(images, [one.prompt for one in chosen])))
        progress.advance(len(chosen))
    return Measured(len(pictures), moments, clip_sum)
