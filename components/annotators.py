"""Component ``annotators``: which models annotate."""

from kfp.dsl import Model, Output

from components import images


@images.annotate
def annotators(
    annotators: Output[Model],
    artifacts: str,
    profile: str = "laptop",
    tagger: str = "",
    vocabulary: str = "",
    detector: str = "",
    captioner: str = "",
    phrase_encoder: str = "",
) -> None:
    """Looks for the models before anything else starts; nothing is loaded.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        profile: laptop or paper.
        tagger: ram, ram:WEIGHTS, or a CLIP or SigLIP (folder, or id of the hub); empty is the profile's own.
        vocabulary: words for a CLIP or SigLIP tagger: a text file, coco or digits; empty is the profile's own.
        detector: a Grounding DINO; empty is the profile's own.
        captioner: a BLIP-2; empty is the profile's own.
        phrase_encoder: a CLIP text encoder, or none; empty is the profile's own.
    """
    from atelier.steps.annotators import run
    from atelier.steps.artifact import write_output

    made = run(
        profile=profile,
        tagger=tagger,
        vocabulary=vocabulary,
        detector=detector,
        captioner=captioner,
        phrase_encoder=phrase_encoder,
        artifacts=artifacts,
    )
    write_output(annotators, made)
