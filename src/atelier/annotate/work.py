"""Annotating as ``data.work.Work``: COCO's images to shards of annotations."""

from pathlib import Path, PurePosixPath
from typing import Any

from atelier.annotate.annotator import Annotation, Annotator, Detector, PreparedImage
from atelier.annotate.config import Config
from atelier.annotate.places import RAM, Place
from atelier.annotate.tagger import Tagger
from atelier.data.coco_annotated import EMBEDDINGS
from atelier.data.coco_folder import COCOFolder
from atelier.data.geometry import decode_whole
from atelier.data.raw_example import RawExample
from atelier.data.work import Sample, WorkSpec
from atelier.storage.digest import sha256_json
from atelier.storage.manifest import Manifest

Prepared = tuple[RawExample, PreparedImage]

SHORT_SIDE = 800  # pixels that the detector resizes an image's short side to; the others ask for less


class PictureWork:
    """What every annotating ``Work`` is: each shard is a unit of its own, so that as many workers as there are shards
    have something to do.

    Args:
        source: images, with units of ``samples_per_shard`` images.
        digest: of models and thresholds.
        samples_per_shard, batch: images of a shard, images annotated at once.

    Attributes:
        names: the images' file names, by key.
    """

    def __init__(self, source: COCOFolder, digest: str, samples_per_shard: int, batch: int) -> None:
        self.source, self.digest = source, digest
        self.samples_per_shard, self.batch = samples_per_shard, batch
        self.names = {PurePosixPath(name).stem: PurePosixPath(name).name for name in source.images}

    def unwanted(self, example: RawExample) -> str:
        """Every picture is annotated."""
        return ""


class AnnotationWork(PictureWork):
    """``Work``; see ``PictureWork``.

    Args:
        annotator: the models.
    """

    def __init__(
        self, source: COCOFolder, annotator: Annotator, digest: str, samples_per_shard: int, batch: int
    ) -> None:
        super().__init__(source, digest, samples_per_shard, batch)
        self._annotator = annotator

    def prepare(self, example: RawExample) -> Prepared:
        """Decodes, and resizes as tagger and detector want it."""
        return example, self._annotator.prepare(decode_whole(example.image, SHORT_SIDE))

    def finish(self, prepared: list[Prepared]) -> list[Sample]:
        """See ``data.work.Work``; the samples' form is that of ``data.coco_annotated``."""
        found = self._annotator.annotate([image for _, image in prepared])
        return [
            _sample(example, self.names[example.key], own) for (example, _), own in zip(prepared, found, strict=True)
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
        config.work,
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
    return "sha256:" + sha256_json({"models": used, "words": models.get("words"), "numbers": config.numbers})


def make_annotator(config: Config, models: dict[str, Any]) -> Annotator:
    """Loads the models that ``places.resolve`` found.

    Raises:
        ConfigError: one cannot be loaded.
    """
    from atelier.annotate.captioner import Captioner
    from atelier.annotate.phrases import PhraseEncoder

    places = places_of(models)
    return Annotator(
        make_tagger(config, models),
        make_detector(config, models),
        Captioner(places["captioner"], config.caption_tokens, config.caption_batch),
        PhraseEncoder(places["phrase_encoder"]) if "phrase_encoder" in places else None,
    )


def places_of(models: dict[str, Any]) -> dict[str, Place]:
    """Each role's place, of what ``places.resolve`` found."""
    return {role: Place(**place) for role, place in models.items() if role != "words"}


def make_tagger(config: Config, models: dict[str, Any]) -> Tagger:
    """RAM, or a CLIP or SigLIP over the vocabulary.

    Raises:
        ConfigError: it cannot be loaded.
    """
    place = places_of(models)["tagger"]
    if place.kind == RAM:
        from atelier.annotate.ram_tagger import RAMTagger

        return RAMTagger(place)
    from atelier.annotate.vocabulary_tagger import VocabularyTagger

    return VocabularyTagger(place, models["words"], config.tag_threshold, config.tag_limit)


def make_detector(config: Config, models: dict[str, Any]) -> Detector:
    """Grounding DINO.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from atelier.annotate.detector import GroundingDetector

    numbers = (config.box_threshold, config.text_threshold, config.nms_iou, config.detect_batch)
    return GroundingDetector(places_of(models)["detector"], *numbers)
