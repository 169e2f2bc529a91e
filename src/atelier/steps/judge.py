"""Judge: trains the classifier that reads the twins' digits, on handwriting that no canvas is drawn with."""

from typing import Any

from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1


def run(*, seed: int, artifacts: str) -> Manifest:
    """A manifest of kind ``judge``: ``judge.safetensors``; its accuracy on unseen real crops in the metadata."""

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        import torch

        from atelier.evaluation.judge import save, train_judge

        torch.set_num_threads(2)
        judge, accuracy = train_judge(seed)
        save(judge, ctx.out.path / "judge.safetensors")
        return "judge", {"accuracy_on_real_digits": round(accuracy, 4)}

    return run_step(
        name="judge",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={},
        params={"seed": seed},
        artifacts=artifacts,
    )
