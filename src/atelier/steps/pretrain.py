"""Pretrain: makes a laptop twin's frozen base from nothing: tokenizer, text encoders, autoencoder, UNet.

Each part is kept when the step is killed; the UNet's training goes on from its last checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1
PROCESSES = 2
TRAINING = ".unet-training"


def run(*, recipe: str, profile: str, seed: int, artifacts: str) -> Manifest:
    """A manifest of kind ``base``, the same folder as the shipped one.

    Raises:
        ConfigError: the profile is not a twin's.
    """
    from atelier.recipes.registry import get, module_of

    if profile != "laptop":
        raise ConfigError(f"profile {profile} has a published base, nothing to pretrain", "use PROFILE=laptop")
    chosen = get(recipe, profile)

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        import torch

        from atelier.recipes.twins import make
        from atelier.recipes.twins.shape import shape
        from atelier.training.launcher import LocalLauncher

        torch.set_num_threads(PROCESSES)
        size, twin = chosen.config.resolution, shape(chosen.twin)
        folder = ctx.out.path
        facts = make.parts(twin, folder, size, seed)
        training = folder / TRAINING
        plan = {"twin": chosen.twin, "parts": str(folder), "size": size, "seed": seed, "folder": str(training)}
        config = folder / ".unet-training.json"
        config.write_text(json.dumps(plan))
        launcher = LocalLauncher(environment={"DS_ACCELERATOR": "cpu"})
        launcher.run("atelier.steps.pretrain_worker", [str(config)], PROCESSES, folder / ".logs")
        make.finish(twin, folder, training / "checkpoint", size)
        ctx.note(source="pretrained", **facts)
        return "base", {}

    return run_step(
        name="pretrain",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={},
        params={"recipe": recipe, "profile": profile, "seed": seed},
        artifacts=artifacts,
        # Reached by name: the recipe, its twin's shape, and the ranks' module.
        extra_modules=(
            module_of(recipe),
            f"atelier.recipes.twins.{chosen.twin.removesuffix('_twin')}",
            "atelier.steps.pretrain_worker",
        ),
    )


def worker_plan(path: Path) -> dict[str, Any]:
    """What ``run`` wrote for the ranks."""
    plan: dict[str, Any] = json.loads(path.read_text())
    return plan
