"""Sample: pictures for held-out layouts, each twice from the same noise: grounded and, as control, not."""

import json
from typing import Any

from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1


def run(
    *,
    model: Manifest,
    recipe: str,
    profile: str,
    count: int,
    steps: int,
    guidance: float,
    seed: int,
    artifacts: str,
) -> Manifest:
    """A manifest of kind ``samples``: ``samples.json``, ``grounded/*.png`` and ``ungrounded/*.png``.

    Args:
        count, steps, guidance: layouts, denoising steps, guidance scale; 0 is the recipe's own.
        seed: of the layouts and the noise.

    Raises:
        ConfigError: see ``check``.
    """
    from atelier.recipes.registry import get, module_of

    check(count=count, steps=steps, guidance=guidance, seed=seed)
    config = get(recipe, profile).config
    count, steps, guidance = count or config.sample_count, steps or config.sample_steps, guidance or config.guidance

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        return _produce(ctx, recipe, profile, count, steps, guidance, seed)

    return run_step(
        name="sample",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"model": model},
        params={
            "recipe": recipe,
            "profile": profile,
            "count": count,
            "steps": steps,
            "guidance": guidance,
            "seed": seed,
        },
        artifacts=artifacts,
        extra_modules=(module_of(recipe),),
    )


def check(*, count: int, steps: int, guidance: float, seed: int) -> None:
    """Refuses what cannot be sampled.

    Raises:
        ConfigError: a negative number.
    """
    if min(count, steps, guidance, seed) < 0:
        raise ConfigError(f"count={count}, steps={steps}, guidance={guidance}, seed={seed}", "none may be negative")


def _produce(
    ctx: StepContext, recipe_name: str, profile: str, count: int, steps: int, guidance: float, seed: int
) -> tuple[str, dict[str, Any]]:
    import torch

    from atelier.evaluation.sheet import contact_sheet
    from atelier.recipes.registry import get

    torch.set_num_threads(2)
    on_gpu = torch.cuda.is_available()
    torch.backends.cuda.enable_flash_sdp(on_gpu)  # on a CPU torch's other kernels are quicker
    recipe = get(recipe_name, profile)
    pipeline = recipe.pipeline(ctx.inputs["model"].fetch_all()).to("cuda" if on_gpu else "cpu")
    layouts = recipe.layouts(count, seed)
    for kind in ("grounded", "ungrounded"):
        (ctx.out.path / kind).mkdir(exist_ok=True)
    progress = ctx.progress("sampling", 2 * len(layouts), "pictures")
    batch = recipe.config.sample_batch
    for begin in range(0, len(layouts), batch):
        chosen = layouts[begin : begin + batch]
        for kind in ("grounded", "ungrounded"):
            paths = [ctx.out.path / kind / f"{begin + row:04d}.png" for row in range(len(chosen))]
            if not all(path.is_file() for path in paths):
                images = recipe.sample(pipeline, chosen, steps, guidance, grounded=kind == "grounded")
                for path, image in zip(paths, images, strict=True):
                    temporary = path.with_name(f".{path.name}")
                    image.save(temporary, format="png")
                    temporary.replace(path)
            progress.advance(len(chosen))
    entries = [
        {
            "prompt": layout.prompt,
            "boxes": layout.boxes,
            "phrases": layout.phrases,
            "labels": list(layout.labels),
            "seed": layout.seed,
            "grounded": f"grounded/{number:04d}.png",
            "ungrounded": f"ungrounded/{number:04d}.png",
        }
        for number, layout in enumerate(layouts)
    ]
    (ctx.out.path / "samples.json").write_text(json.dumps(entries, indent=1))
    ctx.track.log_image(contact_sheet(ctx.out.path, entries[:24]), "held_out_layouts", 0)
    made = {"layouts": len(layouts), "steps": steps, "guidance": guidance, "seed": seed}
    return "samples", made | {"control": recipe.control}
