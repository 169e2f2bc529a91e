"""Component ``train``: the recipe's trainable part, by DeepSpeed."""

from kfp.dsl import Dataset, Input, Model, Output

from components import images


@images.train
def train(
    shards: Input[Dataset],
    base: Input[Model],
    training: Output[Model],
    artifacts: str,
    recipe: str = "igligen_xl",
    profile: str = "laptop",
    steps: int = 0,
    batch_size: int = 0,
    learning_rate: float = 0.0,
    seed: int = 0,
    processes: int = 0,
    zero_stage: int = -1,
    overrides: str = "",
    start: str = "",
) -> None:
    """Trains, with checkpoints; a run that was ended goes on from its newest whole checkpoint.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        recipe: the recipe's name.
        profile: laptop or paper.
        steps: optimizer steps; 0: the recipe's own.
        batch_size: samples a step, over all processes; 0: the recipe's own.
        learning_rate: peak learning rate; 0: the recipe's own.
        seed: seeds every draw of training.
        processes: training processes on this machine; 0: the recipe's own.
        zero_stage: DeepSpeed's ZeRO stage (0 to 3); -1: the recipe's own.
        overrides: further fields of the training configuration, a JSON object.
        start: the model whose adapter it begins with: models:/name@alias, models:/name/version or a folder's URI.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.train import run

    write_output(
        training,
        run(
            shards=read_input(shards),
            base=read_input(base),
            recipe=recipe,
            profile=profile,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            processes=processes,
            zero_stage=zero_stage,
            overrides=overrides,
            start=start,
            artifacts=artifacts,
        ),
    )
