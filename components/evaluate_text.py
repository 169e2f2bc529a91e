"""Component ``evaluate_text``: FID and CLIP score beside what the judge found."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import images


@images.evaluate
def evaluate_text(
    model: Input[Model],
    evaluation: Input[Dataset],
    measured: Output[Dataset],
    metrics: Output[Metrics],
    artifacts: str,
    captions: str = "",
    count: int = 0,
    fid_weights: str = "",
    fid_statistics: str = "",
    clip: str = "",
    steps: int = 0,
    guidance: float = 0.0,
    batch: int = 0,
    bars: str = "",
    seed: int = 0,
    recipe: str = "crossflow",
    profile: str = "laptop",
) -> None:
    """Draws pictures of many captions and measures them; what no yardstick is given for is left out, and said so.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        captions: COCO's captions file, or a file of prompts (one a line, or .jsonl); its place.
        count: pictures; 0 is 30,000 of COCO's captions, or the whole file of prompts.
        fid_weights: place of FID's Inception weights; empty leaves FID out.
        fid_statistics: place of the npz with mu and sigma to compare with.
        clip: a CLIP's folder or id; empty leaves the CLIP score out.
        steps: of sampling; 0 is the recipe's own.
        guidance: guidance scale; 0 is the recipe's own.
        batch: pictures at once; 0 is the recipe's own.
        bars: what metrics must reach, in the place of the recipe's own, a JSON object, e.g. {"fid": 12}: at most 12.
        seed: seeds captions and pictures.
        recipe: the recipe's name.
        profile: laptop or paper.
    """
    from atelier.steps.artifact import read_input, write_metrics, write_output
    from atelier.steps.evaluate_text import run

    made = run(
        model=read_input(model),
        evaluation=read_input(evaluation),
        captions=captions,
        count=count,
        fid_weights=fid_weights,
        fid_statistics=fid_statistics,
        clip=clip,
        steps=steps,
        guidance=guidance,
        batch=batch,
        bars=bars,
        seed=seed,
        recipe=recipe,
        profile=profile,
        artifacts=artifacts,
    )
    write_output(measured, made)
    write_metrics(metrics, made)
