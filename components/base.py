"""Component ``base``: the frozen base model, text encoders and VAE."""

from kfp.dsl import Model, Output

from components import images


@images.train
def base(
    base: Output[Model],
    artifacts: str,
    recipe: str = "igligen_xl",
    profile: str = "laptop",
    pretrain: bool = False,
    uri: str = "",
    seed: int = 0,
    text_uri: str = "",
) -> None:
    """The recipe's base model: pretrained here, fetched from a URI, or the one shipped with the package.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        recipe: the recipe's name.
        profile: laptop or paper.
        pretrain: make the base from nothing, on canvases of its own.
        uri: a diffusers folder (hf://, s3://, file://). Empty: the recipe's own.
        seed: seeds the pretraining.
        text_uri: folder of the language model, for a recipe that does not read its base's own. Empty: the recipe's.
    """
    from atelier.steps.artifact import write_output
    from atelier.steps.base import run

    write_output(
        base,
        run(
            recipe=recipe,
            profile=profile,
            pretrain=pretrain,
            uri=uri,
            seed=seed,
            text_uri=text_uri,
            artifacts=artifacts,
        ),
    )
