"""Component ``predecessor``: the model that a training starts from, made before."""

from kfp.dsl import Input, Model, Output

from components import images


@images.train
def predecessor(
    base: Input[Model],
    start: Output[Model],
    artifacts: str,
    address: str = "",
    name: str = "",
    recipe: str = "igligen_xl",
    profile: str = "laptop",
) -> str:
    """Finds the model, looks what of it fits, and returns its address ("": begin from nothing).

    Args:
        artifacts: URI of the folder of all steps' outputs.
        address: models:/name@alias, models:/name/version, or the URI of a folder or file. Empty: name's champion.
            scratch: begin from nothing.
        name: the registered model's name.
        recipe: the recipe that is trained.
        profile: laptop or paper.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.predecessor import address_of, run

    made = run(
        address=address,
        name=name,
        base=read_input(base),
        recipe=recipe,
        profile=profile,
        artifacts=artifacts,
    )
    write_output(start, made)
    return address_of(made)
