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
    segmenter: str = "",
    clip: str = "",
    recipe: str = "gligen_coco",
) -> None:
    """Looks for the models before anything else starts; nothing is loaded.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        profile: laptop or paper.
        tagger: ram, ram:WEIGHTS, or a CLIP or SigLIP (folder, or id of the hub); empty is the profile's own.
        vocabulary: words for a CLIP or SigLIP tagger: a text file, coco or digits; empty is the profile's own.
        detector: a Grounding DINO; empty is the profile's own.
        captioner: a BLIP-2, for rich_context any image-to-text model; empty is the profile's own.
        phrase_encoder: a CLIP text encoder, or none; empty is the profile's own.
        segmenter: a SAM, or none; empty is the profile's own.
        clip: a CLIP that scores descriptions, or none; empty is the profile's own.
        recipe: what is annotated for, gligen_coco or rich_context.
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
        segmenter=segmenter,
        clip=clip,
        recipe=recipe,
        artifacts=artifacts,
    )
    write_output(annotators, made)
