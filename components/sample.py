"""Component ``sample``: pictures for held-out layouts, with the grounding and without."""

from kfp.dsl import Dataset, Input, Model, Output

from components import images


@images.evaluate
def sample(
    model: Input[Model],
    samples: Output[Dataset],
    artifacts: str,
    recipe: str = "igligen_xl",
    profile: str = "laptop",
    count: int = 0,
    steps: int = 0,
    guidance: float = 0.0,
    seed: int = 0,
) -> None:
    """Samples every layout twice, same prompt and seed: with its boxes and, as control, without.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        recipe: the recipe's name.
        profile: laptop or paper.
        count: how many layouts; 0: the recipe's own.
        steps: denoising steps; 0: the recipe's own.
        guidance: classifier-free guidance scale; 0: the recipe's own.
        seed: seeds layouts and noise.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.sample import run

    write_output(
        samples,
        run(
            model=read_input(model),
            recipe=recipe,
            profile=profile,
            count=count,
            steps=steps,
            guidance=guidance,
            seed=seed,
            artifacts=artifacts,
        ),
    )
