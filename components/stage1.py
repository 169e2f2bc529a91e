"""Component ``stage1``: the model that a second stage starts from, trained before."""

from kfp.dsl import Input, Model, Output

from components import images


@images.train
def stage1(
    base: Input[Model],
    start: Output[Model],
    artifacts: str,
    stage1: str = "",
    name: str = "igligen-xl",
) -> str:
    """Finds stage 1's model, looks whether it fits, and returns its address.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        stage1: models:/name@alias, models:/name/version, or the URI of a folder or file. Empty: name's champion.
        name: the registered model's name.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.stage1 import address_of, run

    made = run(stage1=stage1, name=name, base=read_input(base), artifacts=artifacts)
    write_output(start, made)
    return address_of(made)
