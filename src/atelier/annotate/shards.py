"""Images to shards of annotations: on one machine, or in parts on several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atelier.annotate.config import Config, RichConfig
from atelier.annotate.rich_statistics import statistics
from atelier.annotate.work import annotation_spec
from atelier.data import summary
from atelier.data.coco_folder import COCOFolder
from atelier.data.parts import merge_parts, take_part
from atelier.data.picture_folder import PictureFolder
from atelier.data.quarantine import Quarantine
from atelier.data.summary import ShardSummary
from atelier.data.units import UnitShards, work_through
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest

LABEL = "annotating"


def annotate(
    raw: Manifest,
    config: Config,
    models: dict[str, Any],
    out: OutputFolder,
    quarantine: Quarantine,
    workers: int = 0,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Writes shards (``data.coco_annotated``, or of a ``RichConfig`` ``data.rich_label``), their indices and
    ``quarantine.jsonl`` into ``out``.

    An interrupted run goes on after its committed shards. Same images, models and configuration give the same bytes,
    whatever the number of workers and whenever it was interrupted.

    Args:
        raw: images and captions, see ``COCOFolder`` and ``PictureFolder``.
        models: what ``places.resolve`` found.
        workers: processes; 0 is one for each visible GPU, one without any.
        cache: where remote files are kept.

    Returns:
        The manifest's metadata: samples, quarantined (count by reason), annotators (digest), fields, boxes (kept and
        dropped), shards (name, samples), metrics, and of labels ``statistics``, see ``rich_statistics``.

    Raises:
        DataError: more images are bad than ``quarantine`` allows. AtelierError: a worker died or failed.
    """
    source = _source(raw, config, cache)
    spec = annotation_spec(source, config, models)
    units, digest = work_through(source.units, spec, out, quarantine, LABEL, len(source.images), workers)
    shards = [shard for unit in units for shard in unit.shards]
    quarantine.check(sum(shard.covers for shard in shards))
    return _metadata(shards, digest, quarantine)


def annotate_part(
    raw: Manifest,
    config: Config,
    models: dict[str, Any],
    out: OutputFolder,
    index: int,
    count: int,
    workers: int = 0,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Part ``index`` (from 0) of ``count``: every ``count``-th shard. Finish ``out`` as kind ``data.parts.KIND`` with
    what it returns.

    Raises:
        ConfigError: no such part. AtelierError: as ``annotate``.
    """
    source = _source(raw, config, cache)
    spec = annotation_spec(source, config, models)

    def work(names: list[str], quarantine: Quarantine) -> tuple[list[UnitShards], str]:
        return work_through(names, spec, out, quarantine, LABEL, workers=workers)

    return take_part(source.units, work, out, _settings(config), index, count)


def merge_annotations(
    parts: Sequence[Manifest], config: Config, out: OutputFolder, quarantine: Quarantine, cache: Path | None = None
) -> dict[str, Any]:
    """All parts' shards in one folder, as ``annotate`` would have made it alone.

    Returns:
        The manifest's metadata, see ``annotate``.

    Raises:
        DataError: as ``data.parts.merge_parts``.
    """
    shards, digest = merge_parts(parts, out, _settings(config), quarantine, cache)
    return _metadata(shards, digest, quarantine)


def _source(raw: Manifest, config: Config, cache: Path | None) -> COCOFolder:
    kind = PictureFolder if isinstance(config, RichConfig) else COCOFolder
    return kind(raw, cache, config.images_per_shard)


def _settings(config: Config) -> dict[str, Any]:
    return {"images_per_shard": config.images_per_shard}


def _metadata(shards: Sequence[ShardSummary], digest: str, quarantine: Quarantine) -> dict[str, Any]:
    made = summary.metadata(shards, quarantine.counts())
    counts = made.pop("counts", None)
    boxes = {name: made["boxes"][name] for name in ("kept", "dropped")}
    metrics = {
        "images_annotated": made["samples"],
        "images_quarantined": len(quarantine.entries),
        "boxes_per_image": round(boxes["kept"] / max(made["samples"], 1), 3),
    }
    described = {"statistics": statistics(counts)} if counts else {}
    return made | {"boxes": boxes, "annotators": digest, "metrics": metrics, **described}
