"""Component ``convert``: the training checkpoint to an adapter and a diffusers folder."""

from kfp.dsl import Input, Model, Output

from components import images


@images.train
def convert(
    training: Input[Model],
    base: Input[Model],
    model: Output[Model],
    artifacts: str,
    recipe: str = "igligen_xl",
    profile: str = "laptop",
) -> None:
    """Exports what was trained; every key of the checkpoint must find its place.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        recipe: the recipe's name.
        profile: laptop or paper.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.convert import run

    write_output(
        model,
        run(
            training=read_input(training),
            base=read_input(base),
            recipe=recipe,
            profile=profile,
            artifacts=artifacts,
        ),
    )
