"""Annotating as ``data.work.Work``: COCO's images to shards of annotations."""

from pathlib import Path, PurePosixPath
from typing import Any

from atelier.annotate.annotator import Annotation, Annotator, PreparedImage
from atelier.annotate.config import Config
from atelier.annotate.places import RAM, Place
from atelier.data.coco_annotated import EMBEDDINGS
from atelier.data.coco_folder import COCOFolder
from atelier.data.geometry import decode_whole
from atelier.data.raw_example import RawExample
from atelier.data.work import Sample, WorkSpec
from atelier.storage.digest import sha256_json
from atelier.storage.manifest import Manifest

Prepared = tuple[RawExample, PreparedImage]

SHORT_SIDE = 800  # pixels that the detector resizes an image's short side to; the others ask for less


class AnnotationWork:
    """``Work``: each shard is a unit of its own, so that as many workers as there are shards have something to do.

    Args:
        source: images, with units of ``samples_per_shard`` images.
        annotator: the models.
        digest: of models and thresholds.
        samples_per_shard, batch: images of a shard, images annotated at once.
    """

    def __init__(
        self, source: COCOFolder, annotator: Annotator, digest: str, samples_per_shard: int, batch: int
    ) -> None:
        self.source, self._annotator, self.digest = source, annotator, digest
        self.samples_per_shard, self.batch = samples_per_shard, batch
        self._names = {PurePosixPath(name).stem: PurePosixPath(name).name for name in source.images}

    def unwanted(self, example: RawExample) -> str:
        """Every picture is annotated."""
        return ""

    def prepare(self, example: RawExample) -> Prepared:
        """Decodes, and resizes as tagger and detector want it."""
        return example, self._annotator.prepare(decode_whole(example.image, SHORT_SIDE))

    def finish(self, prepared: list[Prepared]) -> list[Sample]:
        """See ``data.work.Work``; the samples' form is that of ``data.coco_annotated``."""
        found = self._annotator.annotate([image for _, image in prepared])
        return [
            _sample(example, self._names[example.key], own) for (example, _), own in zip(prepared, found, strict=True)
        ]


def _sample(example: RawExample, name: str, found: Annotation) -> Sample:
    record = {
        "image": name,
        "original_size": list(example.original_size),
        "captions": list(example.captions),
        "tags": list(found.tags),
        "boxes_px": found.boxes.tolist(),
        "scores": [float(score) for score in found.scores],
        "labels": list(found.labels),
        "phrases": list(found.phrases),
    }
    arrays = {} if found.embeddings is None else {EMBEDDINGS: found.embeddings}
    return Sample(example.key, arrays, record, {"kept": len(found.boxes), "dropped": found.dropped})


def annotation_spec(source: COCOFolder, config: Config, models: dict[str, Any]) -> WorkSpec:
    """How another process makes this work.

    Args:
        models: what ``places.resolve`` found.
    """
    return WorkSpec(
        f"{__name__}:open_work",
        {
            "source": source.manifest.to_json(),
            "cache": str(source.cache) if source.cache else None,
            "config": config.model_dump(),
            "models": models,
        },
    )


def open_work(source: str, cache: str | None, config: dict[str, Any], models: dict[str, Any]) -> AnnotationWork:
    """From ``annotation_spec``'s arguments: loads the models."""
    chosen = Config(**config)
    images = COCOFolder(Manifest.parse(source), Path(cache) if cache else None, chosen.images_per_shard)
    return AnnotationWork(
        images, make_annotator(chosen, models), digest(chosen, models), chosen.images_per_shard, chosen.batch
    )


def digest(config: Config, models: dict[str, Any]) -> str:
    """``sha256:…`` of the models' content and of every number that decides a box or a word."""
    used = {role: model["digest"] for role, model in models.items() if role != "words"}
    numbers = config.model_dump(include=set(NUMBERS))
    return "sha256:" + sha256_json({"models": used, "words": models.get("words"), "numbers": numbers})


#: Batches are among them: sums of floating-point numbers depend on their order.
NUMBERS = (
    "tag_threshold",
    "tag_limit",
    "box_threshold",
    "text_threshold",
    "nms_iou",
    "caption_tokens",
    "batch",
    "detect_batch",
    "caption_batch",
)


def make_annotator(config: Config, models: dict[str, Any]) -> Annotator:
    """Loads the models that ``places.resolve`` found.

    Raises:
        ConfigError: one cannot be loaded.
    """
    from atelier.annotate.captioner import Captioner
    from atelier.annotate.detector import GroundingDetector
    from atelier.annotate.phrases import PhraseEncoder
    from atelier.annotate.ram_tagger import RAMTagger
    from atelier.annotate.vocabulary_tagger import VocabularyTagger

    places = {role: Place(**place) for role, place in models.items() if role != "words"}
    tagger = places["tagger"]
    return Annotator(
        RAMTagger(tagger)
        if tagger.kind == RAM
        else VocabularyTagger(tagger, models["words"], config.tag_threshold, config.tag_limit),
        GroundingDetector(
            places["detector"], config.box_threshold, config.text_threshold, config.nms_iou, config.detect_batch
        ),
        Captioner(places["captioner"], config.caption_tokens, config.caption_batch),
        PhraseEncoder(places["phrase_encoder"]) if "phrase_encoder" in places else None,
    )
