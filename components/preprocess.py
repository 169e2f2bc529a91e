"""Component ``preprocess``: raw images to shards of latents, embeddings and boxes."""

from kfp.dsl import Dataset, Input, Model, Output

from components import images


@images.train
def preprocess(
    raw: Input[Dataset],
    base: Input[Model],
    shards: Output[Dataset],
    artifacts: str,
    recipe: str = "igligen_xl",
    profile: str = "laptop",
    samples_per_shard: int = 0,
    batch_size: int = 0,
    max_quarantined: float = 0.0,
    workers: int = 0,
    filters: str = "",
    resolutions: str = "",
) -> None:
    """Encodes every image and its text once; what cannot be read is quarantined and counted.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        recipe: the recipe's name.
        profile: laptop or paper.
        samples_per_shard: samples in a shard; 0: the recipe's own.
        batch_size: images encoded at once; 0: the recipe's own.
        max_quarantined: the share of bad samples at which the run fails; 0: the recipe's own.
        workers: processes that encode; 0: one for each GPU.
        filters: thresholds in the place of the recipe's own, a JSON object, e.g. {"min_side": 512}.
        resolutions: sides of the squares to encode, e.g. 256,512; empty: the recipe's own.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.preprocess import run

    write_output(
        shards,
        run(
            raw=read_input(raw),
            base=read_input(base),
            recipe=recipe,
            profile=profile,
            samples_per_shard=samples_per_shard,
            batch_size=batch_size,
            max_quarantined=max_quarantined,
            workers=workers,
            filters=filters,
            resolutions=resolutions,
            artifacts=artifacts,
        ),
    )
