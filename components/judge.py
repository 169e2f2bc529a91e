"""Component ``judge``: the classifier that reads the crops of the samples."""

from kfp.dsl import Model, Output

from components import images


@images.evaluate
def judge(judge: Output[Model], artifacts: str, seed: int = 0) -> None:
    """Trains the digit classifier on digits that no training canvas shows.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        seed: seeds the classifier's training.
    """
    from atelier.steps.artifact import write_output
    from atelier.steps.judge import run

    write_output(judge, run(seed=seed, artifacts=artifacts))
