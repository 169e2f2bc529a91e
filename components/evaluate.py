"""Component ``evaluate``: what the samples are worth, beside the control and the bars."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import images


@images.evaluate
def evaluate(
    samples: Input[Dataset],
    judge: Input[Model],
    evaluation: Output[Dataset],
    metrics: Output[Metrics],
    artifacts: str,
    recipe: str = "igligen_xl",
    profile: str = "laptop",
) -> None:
    """Judges the samples.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        recipe: the recipe's name.
        profile: laptop or paper.
    """
    from atelier.steps.artifact import read_input, write_metrics, write_output
    from atelier.steps.evaluate import run

    made = run(
        samples=read_input(samples),
        judge=read_input(judge),
        recipe=recipe,
        profile=profile,
        artifacts=artifacts,
    )
    write_output(evaluation, made)
    write_metrics(metrics, made)
