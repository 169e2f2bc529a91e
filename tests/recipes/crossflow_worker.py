"""A rank of a small CrossFlow training: ``python -m crossflow_worker plan.json`` under the launcher."""

import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data import digit_pairs, digits
from atelier.data.raw_example import RawExample
from atelier.recipes.crossflow import Config, Recipe
from atelier.recipes.crossflow_encoder import Encoder
from atelier.recipes.registry import get


class Pairs:
    """Encoded canvases of digit pairs."""

    def __init__(self, base: Path, config: Config, count: int) -> None:
        self.base, self.config, self.count = base, config, count
        self.shard_starts = np.array([0, count])

    def __len__(self) -> int:
        return self.count

    @cached_property
    def _samples(self) -> list[dict[str, Any]]:
        rng, glyphs = np.random.default_rng(0), digits.split().canvas
        drawn = [digit_pairs.draw(rng, self.config.resolution, glyphs) for _ in range(self.count)]
        examples = [
            RawExample(str(n), b"", (32, 32), canvas.caption, np.zeros((0, 4), np.float32), np.zeros(0), ())
            for n, canvas in enumerate(drawn)
        ]
        return Encoder(self.base, self.config).encode(np.stack([canvas.pixels for canvas in drawn]), examples)

    def sample(self, index: int) -> dict[str, Any]:
        return dict(self._samples[index])


def main(plan: str) -> int:
    from atelier.data.loader import Loader
    from atelier.training.callbacks import standard_callbacks
    from atelier.training.engine import train

    given = json.loads(Path(plan).read_text())
    recipe: Recipe = get(given["recipe"], "laptop", given["overrides"])
    config, base = recipe.config, Path(given["base"])
    dataset = Pairs(base, config, given["count"])
    train(
        recipe.objective(base),
        dataset,
        config.train,
        Path(given["folder"]),
        standard_callbacks(config.train),
        loader=Loader,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
