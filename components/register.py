"""Component ``register``: a version in MLflow's model registry."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components import images


@images.ops
def register(
    model: Input[Model],
    evaluation: Input[Dataset],
    training: Input[Model],
    registration: Output[Artifact],
    artifacts: str,
    name: str = "igligen-xl",
) -> str:
    """Registers the model as challenger; the first one that passes its bars becomes champion. Returns its address.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        name: the registered model's name.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.register import run

    made = run(
        model=read_input(model),
        evaluation=read_input(evaluation),
        training=read_input(training),
        name=name,
        artifacts=artifacts,
    )
    write_output(registration, made)
    return str(made.metadata["uri"])
