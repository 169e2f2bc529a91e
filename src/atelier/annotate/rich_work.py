"""Labelling as ``data.work.Work``: pictures to shards of rich labels, ``label_<picture>.json`` each."""

from pathlib import Path
from typing import Any

import numpy as np

from atelier.annotate.annotator import PreparedImage
from atelier.annotate.config import RichConfig
from atelier.annotate.describer import Describer, OpenedModel
from atelier.annotate.prompt import clean
from atelier.annotate.rich_annotator import DescribedObject, RichAnnotation, RichAnnotator
from atelier.annotate.rich_statistics import counted
from atelier.annotate.work import SHORT_SIDE, PictureWork, digest, make_detector, make_tagger, places_of
from atelier.data.geometry import decode_whole
from atelier.data.letterbox import Rectangle, cut
from atelier.data.picture_folder import PictureFolder
from atelier.data.raw_example import RawExample
from atelier.data.rich_label import PREFIX, make_label, make_object
from atelier.data.work import Sample
from atelier.storage.manifest import Manifest

DATASET = "rich-context"

Prepared = tuple[RawExample, tuple[int, int], PreparedImage]
"""With the (H, W) of the picture's file, which a label's pixels are of."""


class RichWork(PictureWork):
    """``Work``; see ``PictureWork``.

    Args:
        source: images, with units of ``samples_per_shard`` images.
        annotator: the models.
    """

    def __init__(
        self, source: PictureFolder, annotator: RichAnnotator, digest: str, samples_per_shard: int, batch: int
    ) -> None:
        super().__init__(source, digest, samples_per_shard, batch)
        self._annotator = annotator

    def prepare(self, example: RawExample) -> Prepared:
        """Decodes, cuts a border off, and resizes as tagger and detector want it."""
        whole = decode_whole(example.image, SHORT_SIDE)
        picture = cut(whole, example.inner) if example.inner else whole
        return example, (whole.height, whole.width), self._annotator.prepare(picture)

    def finish(self, prepared: list[Prepared]) -> list[Sample]:
        """See ``data.work.Work``; a sample's record is a label, and its key the label's name."""
        captioned = [bool(example.caption) for example, _, _ in prepared]
        found = self._annotator.annotate([picture for _, _, picture in prepared], captioned)
        return [
            _sample(example, size, self.names[example.key], own)
            for (example, size, _), own in zip(prepared, found, strict=True)
        ]


def _sample(example: RawExample, size: tuple[int, int], name: str, found: RichAnnotation) -> Sample:
    record = make_label(
        name,
        int(example.key) if example.key.isdecimal() else 0,
        example.caption or found.caption,
        [_object(one, found.tags, size, example.inner) for one in found.objects],
        DATASET,
    )
    boxes = {"kept": len(found.objects), "dropped": found.dropped}
    return Sample(
        PREFIX + example.key, {}, {**record, "tags": list(found.tags)}, boxes, counted(found, bool(example.caption))
    )


def _object(
    one: DescribedObject, tags: tuple[str, ...], size: tuple[int, int], inner: Rectangle | None
) -> dict[str, Any]:
    """In pixels of the file, whatever border it has. ``category_id`` is the place among the picture's tags, from 1;
    0 is none of them."""
    left, top = (0, 0) if inner is None else inner[:2]
    box = (one.box[0] + left, one.box[1] + top, one.box[2] + left, one.box[3] + top)
    mask = one.mask
    if mask is not None and inner is not None:
        mask = np.zeros(size, bool)
        mask[inner[1] : inner[3], inner[0] : inner[2]] = one.mask
    asked = [clean(tag) for tag in tags]
    number = asked.index(one.category) + 1 if one.category in asked else 0
    made = make_object(box, one.category, number, one.description, round(one.score, 6), mask)
    return made if one.fit is None else {**made, "clip_score": round(one.fit, 4)}


def open_work(source: str, cache: str | None, config: dict[str, Any], models: dict[str, Any]) -> RichWork:
    """From ``work.annotation_spec``'s arguments: loads the models."""
    chosen = RichConfig(**config)
    images = PictureFolder(Manifest.parse(source), Path(cache) if cache else None, chosen.images_per_shard)
    annotator = make_rich_annotator(chosen, models)
    return RichWork(images, annotator, digest(chosen, models), chosen.images_per_shard, chosen.batch)


def make_rich_annotator(config: RichConfig, models: dict[str, Any]) -> RichAnnotator:
    """Loads the models that ``places.resolve`` found.

    Raises:
        ConfigError: one cannot be loaded.
    """
    from atelier.evaluation.crop_score import CropScore
    from atelier.models.sam import BoxSegmenter

    places = places_of(models)
    opened = OpenedModel(places["captioner"])
    sizes = (config.caption_tokens, config.caption_batch, config.crop_side)
    sam, clip = places.get("segmenter"), places.get("clip")
    return RichAnnotator(
        make_tagger(config, models),
        make_detector(config, models),
        Describer(opened, config.prompt, *sizes),
        Describer(opened, config.caption_prompt, *sizes),
        None if sam is None else BoxSegmenter(sam.name, sam.revision, use_safetensors=True),
        None if clip is None else CropScore(clip.name, batch=config.caption_batch, revision=clip.revision),
        config.described_area,
    )
