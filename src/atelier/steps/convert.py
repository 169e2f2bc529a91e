"""Convert: the DeepSpeed checkpoint → the adapter as safetensors → a diffusers folder."""

from typing import Any

from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1


def run(*, training: Manifest, base: Manifest, recipe: str, profile: str, artifacts: str) -> Manifest:
    """A manifest of kind ``model``: a diffusers folder with ``gligen_adapter.safetensors`` beside it.

    Raises:
        DataError: the checkpoint is damaged. ConfigError: its keys do not fit the base.
    """

    from atelier.recipes.registry import module_of

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.convert.training_checkpoint import averaged, trainable_state
        from atelier.recipes.registry import get

        progress = ctx.progress("converting", 3, "parts")
        folder = ctx.inputs["training"].fetch_all()
        progress.advance()
        adapter = trainable_state(folder / "checkpoint", average=averaged(training))
        progress.advance()
        counts = get(recipe, profile).export(ctx.inputs["base"].fetch_all(), adapter, ctx.out.path)
        progress.advance()
        return "model", {"recipe": recipe, "profile": profile, "parameters": counts}

    return run_step(
        name="convert",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"training": training, "base": base},
        params={"recipe": recipe, "profile": profile},
        artifacts=artifacts,
        extra_modules=(module_of(recipe),),
    )
