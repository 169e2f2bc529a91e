"""Component ``evaluate_layouts``: CropCLIP, CropPick and SAMIoU beside what the judge found."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components import images


@images.evaluate
def evaluate_layouts(
    samples: Input[Dataset],
    evaluation: Input[Dataset],
    measured: Output[Dataset],
    metrics: Output[Metrics],
    artifacts: str,
    clip: str = "",
    pick: str = "",
    pick_tokenizer: str = "",
    sam: str = "",
    legacy: bool = False,
    batch: int = 0,
    bars: str = "",
    recipe: str = "rich_context",
    profile: str = "laptop",
) -> None:
    """Measures every box of the samples and of their control; what no model is given for is left out, and said so.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        clip: a CLIP's folder or id; empty leaves CropCLIP out.
        pick: PickScore's folder or id; empty leaves CropPick out.
        pick_tokenizer: folder or id of a CLIP whose tokenizer PickScore takes; empty is clip's, or its own.
        sam: a SAM's folder or id; empty leaves SAMIoU out.
        legacy: SAM's boxes a pixel smaller, as the published code's are.
        batch: crops at once; 0 is 64.
        bars: what metrics must reach, in the place of the recipe's own, a JSON object, e.g. {"sam_iou": 0.5}.
        recipe: the recipe's name.
        profile: laptop or paper.
    """
    from atelier.steps.artifact import read_input, write_metrics, write_output
    from atelier.steps.evaluate_layouts import run

    made = run(
        samples=read_input(samples),
        evaluation=read_input(evaluation),
        clip=clip,
        pick=pick,
        pick_tokenizer=pick_tokenizer,
        sam=sam,
        legacy=legacy,
        batch=batch,
        bars=bars,
        recipe=recipe,
        profile=profile,
        artifacts=artifacts,
    )
    write_output(measured, made)
    write_metrics(metrics, made)
