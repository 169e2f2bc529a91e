"""Component ``download``: raw data to where the run can read it, resumable and checksummed."""

from kfp.dsl import Dataset, Input, Output

from components import images


@images.ops
def download(source: Input[Dataset], raw: Output[Dataset], artifacts: str) -> None:
    """Fetches images, captions and boxes.

    Args:
        artifacts: URI of the folder of all steps' outputs.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.download import run

    write_output(raw, run(source=read_input(source), artifacts=artifacts))
