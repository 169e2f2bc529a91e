"""The learning-rate schedule: a pure function of the step, so a resumed run needs no scheduler state."""

import math

from atelier.training.config import TrainConfig


def lr_factor(config: TrainConfig, step: int) -> float:
    """What each group's own learning rate is multiplied by for the update number ``step`` (0-based).

    Warm-up is linear and starts at 1/warmup_steps, not at zero, so that no update is wasted; the decay's length is
    what is left after the warm-up.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    if config.schedule == "constant":
        return 1.0
    flat = config.flat_share if config.schedule == "flat_cosine" else 0.0
    if done < flat:
        return 1.0
    decayed = min((done - flat) / max(1.0 - flat, 1e-9), 1.0)
    return config.final_lr_share + (1.0 - config.final_lr_share) * 0.5 * (1.0 + math.cos(math.pi * decayed))
