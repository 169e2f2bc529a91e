"""Rich-context's labels of bare pictures: tags, boxes, an outline and a whole description of each object, a caption.

What it writes is fed to ``rich_context_512`` as its ``boxes``. docs/annotate.md says which models it needs.
"""

from kfp import dsl

from components.annotate import annotate
from components.annotators import annotators
from components.download import download
from components.label_report import label_report
from components.source import source

FORM, RECIPE = "rich-context-images", "rich_context"

CHOICES = {"profile": ("laptop", "paper")}


@dsl.pipeline(
    name="rich-context-annotate", description="Labels that describe every object at length, to train Rich-context on."
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
    segmenter: str = "",
    captioner: str = "",
    clip: str = "",
    prompt: str = "",
    caption_prompt: str = "",
    box_threshold: float = 0.0,
    text_threshold: float = 0.0,
    batch_size: int = 0,
    caption_batch_size: int = 0,
    images_per_shard: int = 0,
    max_quarantined: float = 0.0,
    workers: int = 0,
) -> None:
    """Labels.

    Args:
        artifacts: Folder or bucket of all outputs, e.g. s3://bucket/prefix. Locally, when empty, .atelier/artifacts.
        profile: laptop (small batches on CPU; models must be given) or paper (the published models).
        seed: Seeds the drawing of digits.
        images: How many canvases of handwritten digits are drawn; unused when pictures is given.
        pictures: URI of the images, e.g. s3://bucket/cc3m-images/00000/, with img2dataset's JSON beside them or
            without. Empty draws digits.
        captions: URI of a captions JSON of COCO's form, or of a .jsonl with img_path and prompt; may be empty.
        tagger: ram, ram:WEIGHTS, or a CLIP or SigLIP (folder, or id of the hub with @revision). Empty is the profile's.
        vocabulary: Words for a CLIP or SigLIP tagger, a text file (a word a line), coco or digits.
        detector: Grounding DINO, a folder or an id of the hub. Empty is the profile's own.
        segmenter: SAM, a folder or an id of the hub; none leaves the masks out. Empty is the profile's own.
        captioner: Any image-to-text model of transformers, a folder or an id of the hub. Empty is the profile's own.
        clip: CLIP that scores the descriptions. Empty leaves the scores out.
        prompt: What the captioner is asked about an object; none asks nothing. Empty is the profile's own.
        caption_prompt: And about a whole picture that has no caption.
        box_threshold: Least score of a box; 0 is the profile's own.
        text_threshold: Least score of a word in a box's label; 0 is the profile's own.
        batch_size: Images annotated at once; 0 is the profile's own.
        caption_batch_size: Crops described at once; 0 is the profile's own.
        images_per_shard: Images in a shard; 0 is the profile's own.
        max_quarantined: Share of unreadable images at which the run fails; 0 is the profile's own.
        workers: Processes that annotate; 0 is one for each GPU.
    """
    models = annotators(
        artifacts=artifacts,
        profile=profile,
        recipe=RECIPE,
        tagger=tagger,
        vocabulary=vocabulary,
        detector=detector,
        segmenter=segmenter,
        captioner=captioner,
        clip=clip,
    )
    # After the models: what they lack is said before anything is fetched.
    origin = source(
        artifacts=artifacts, form=FORM, pictures=pictures, captions=captions, images=images, seed=seed
    ).after(models)
    raw = download(source=origin.outputs["source"], artifacts=artifacts).outputs["raw"]
    labels = annotate(
        raw=raw,
        annotators=models.outputs["annotators"],
        artifacts=artifacts,
        profile=profile,
        recipe=RECIPE,
        prompt=prompt,
        caption_prompt=caption_prompt,
        box_threshold=box_threshold,
        text_threshold=text_threshold,
        batch_size=batch_size,
        caption_batch_size=caption_batch_size,
        images_per_shard=images_per_shard,
        max_quarantined=max_quarantined,
        workers=workers,
    ).outputs["annotations"]
    label_report(raw=raw, labels=labels, title="Rich-context labels", artifacts=artifacts)
