"""The state of a training run in one rank, as the callbacks see it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from atelier.training.config import TrainConfig
from atelier.training.protocol import Objective
from atelier.training.runtime import Ranks


@dataclass
class TrainingRun:
    """What a callback may read; only the engine writes it.

    Attributes:
        model: the objective's model (not the engine's wrapper).
        step: optimizer updates done.
        first_step: ``step`` when this process began: not zero after a resume.
        seconds: training time so far, over all resumes.
        kept_step: ``step`` of the newest whole checkpoint, or of the start; up to date on rank 0 alone.
        saving: whether a save is going on; of rank 0 likewise.
        waited_s: seconds that this process waited for saves to become whole.
        metrics: the latest logged line, {} before the first.
        validation: the recipe's own metric as measured last, {} before (and on ranks that take no part).
    """

    objective: Objective
    model: torch.nn.Module
    config: TrainConfig
    folder: Path
    ranks: Ranks
    step: int = 0
    first_step: int = 0
    seconds: float = 0.0
    kept_step: int = 0
    saving: bool = False
    waited_s: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.config.steps
