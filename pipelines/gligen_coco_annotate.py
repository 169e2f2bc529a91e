"""Grounded annotations of COCO's images: tags, boxes, a caption for each box and its embedding.

What it writes is fed to ``gligen_coco_512`` as its ``boxes``. docs/annotate.md says which models it needs.
"""

from kfp import dsl

from components.annotate import annotate
from components.annotators import annotators
from components.download import download
from components.source import source

FORM = "coco-images"

CHOICES = {"profile": ("laptop", "paper")}


@dsl.pipeline(
    name="gligen-coco-annotate", description="Boxes with a caption each for COCO's images, to train GLIGEN on."
)
def pipeline(
    artifacts: str = "",
    profile: str = "laptop",
    seed: int = 0,
    images: int = 200,
    pictures: str = "",
    captions: str = "",
    tagger: str = "",
    vocabulary: str = "",
    detector: str = "",
    captioner: str = "",
    phrase_encoder: str = "",
    box_threshold: float = 0.0,
    text_threshold: float = 0.0,
    batch_size: int = 0,
    caption_batch_size: int = 0,
    images_per_shard: int = 0,
    max_quarantined: float = 0.0,
    workers: int = 0,
) -> None:
    """Annotates.

    Args:
        artifacts: Folder or bucket of all outputs, e.g. s3://bucket/prefix. Locally, when empty, .atelier/artifacts.
        profile: laptop (small batches on CPU; models must be given) or paper (the published models).
        seed: Seeds the drawing of digits.
        images: How many canvases of handwritten digits are drawn; unused when pictures is given.
        pictures: URI of the images, e.g. s3://bucket/train2017/*.jpg. Empty draws digits.
        captions: URI of captions_train2017.json, whose captions are merged in; may be empty.
        tagger: ram, ram:WEIGHTS, or a CLIP or SigLIP (folder, or id of the hub with @revision). Empty is the profile's.
        vocabulary: Words for a CLIP or SigLIP tagger, a text file (a word a line), coco or digits.
        detector: Grounding DINO, a folder or an id of the hub. Empty is the profile's own.
        captioner: BLIP-2, a folder or an id of the hub. Empty is the profile's own.
        phrase_encoder: CLIP text encoder of the base that is to be trained; none leaves it to that run.
        box_threshold: Least score of a box; 0 is the profile's own.
        text_threshold: Least score of a word in a box's label; 0 is the profile's own.
        batch_size: Images annotated at once; 0 is the profile's own.
        caption_batch_size: Crops captioned at once; 0 is the profile's own.
        images_per_shard: Images in a shard; 0 is the profile's own.
        max_quarantined: Share of unreadable images at which the run fails; 0 is the profile's own.
        workers: Processes that annotate; 0 is one for each GPU.
    """
    models = annotators(
        artifacts=artifacts,
        profile=profile,
        tagger=tagger,
        vocabulary=vocabulary,
        detector=detector,
        captioner=captioner,
        phrase_encoder=phrase_encoder,
    )
    # After the models: what they lack is said before anything is fetched.
    origin = source(
        artifacts=artifacts, form=FORM, pictures=pictures, captions=captions, images=images, seed=seed
    ).after(models)
    raw = download(source=origin.outputs["source"], artifacts=artifacts).outputs["raw"]
    annotate(
        raw=raw,
        annotators=models.outputs["annotators"],
        artifacts=artifacts,
        profile=profile,
        box_threshold=box_threshold,
        text_threshold=text_threshold,
        batch_size=batch_size,
        caption_batch_size=caption_batch_size,
        images_per_shard=images_per_shard,
        max_quarantined=max_quarantined,
        workers=workers,
    )
