"""A rank that trains the tiny recipe for a step: ``python -m start_worker BASE FOLDER CHECKPOINTS`` under torchrun."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

TRAIN = {"steps": 1, "batch_size": 4, "processes": 2, "zero_stage": 2, "log_every": 1, "lr": 1e-3, "warmup_steps": 0}


class Samples:
    """Four samples as the shards of the SDXL twin hold them, made from their index."""

    shard_starts = np.array([0, 4])

    def __len__(self) -> int:
        return 4

    def sample(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        return {
            "latent": rng.standard_normal((4, 16, 16)).astype(np.float16),
            "prompt": rng.standard_normal((16, 128)).astype(np.float16),
            "pooled": rng.standard_normal(64).astype(np.float16),
            "phrases": rng.standard_normal((2, 128)).astype(np.float16),
            "json": {"boxes": [[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 0.9, 0.9]], "time_ids": [64, 64, 0, 0, 64, 64]},
        }


def recipe() -> Any:
    """The recipe at the size of ``TRAIN``."""
    from atelier.recipes.registry import get

    own = {"preview_every": None, "checkpoint_every_s": None, "loader_workers": 0}
    return get("igligen_xl", "laptop", {"train": TRAIN | own})


def main() -> None:
    """Trains."""
    from atelier.data.loader import Loader
    from atelier.training.callbacks import standard_callbacks
    from atelier.training.engine import train

    base, folder, checkpoints = sys.argv[1:]
    chosen = recipe()
    train(
        chosen.objective(Path(base)),
        Samples(),
        chosen.config.train,
        Path(folder),
        standard_callbacks(chosen.config.train),
        loader=Loader,
        checkpoints_at=checkpoints,
    )


if __name__ == "__main__":
    main()
