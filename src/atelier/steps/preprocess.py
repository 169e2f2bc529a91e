"""Preprocess: raw tars to WebDataset shards of latents, embeddings and boxes, by the recipe's encoder."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from atelier.errors import ConfigError, DataError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest

VERSION = 1


def run(
    *,
    raw: Manifest,
    base: Manifest,
    recipe: str,
    profile: str,
    samples_per_shard: int,
    batch_size: int,
    max_quarantined: float,
    artifacts: str,
) -> Manifest:
    """A manifest of kind ``shards``, see ``atelier.data.preprocess`` for its files and metadata.

    Args:
        raw: kind ``sa1b-raw``.
        base: the frozen base (VAE and text encoders).
        samples_per_shard, batch_size, max_quarantined: 0 takes the recipe's own.

    Raises:
        ConfigError: a parameter out of range. DataError: a damaged tar, or too many unusable samples.
    """
    from atelier.recipes import registry

    chosen = registry.get(recipe, profile)
    params = {
        "recipe": recipe,
        "profile": profile,
        "resolution": chosen.config.resolution,
        "samples_per_shard": samples_per_shard or chosen.config.samples_per_shard,
        "batch_size": batch_size or chosen.config.encode_batch,
        "max_quarantined": max_quarantined or chosen.config.max_quarantined,
        "min_confidence": chosen.config.min_confidence,
        "max_boxes": chosen.config.max_boxes,
    }
    if params["samples_per_shard"] < 1 or params["batch_size"] < 1 or not 0 <= params["max_quarantined"] < 1:
        raise ConfigError(
            f"samples_per_shard={samples_per_shard}, batch_size={batch_size}, max_quarantined={max_quarantined}",
            "counts must be 1 or more (0: the recipe's own), the share at least 0 and below 1",
        )

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.data.captions import CaptionTable
        from atelier.data.preprocess import preprocess
        from atelier.data.quarantine import Quarantine

        folder = ctx.inputs["raw"]
        metadata = preprocess(
            _tars(folder),
            CaptionTable([folder.fetch(name) for name in folder.names("captions/*.parquet")]),
            chosen.encoder(ctx.inputs["base"].fetch_all()),
            ctx.out,
            res=params["resolution"],
            samples_per_shard=params["samples_per_shard"],
            batch=params["batch_size"],
            quarantine=Quarantine(params["max_quarantined"], ctx.out.path / "quarantine.jsonl"),
            total=raw.metadata.get("images"),
            min_confidence=params["min_confidence"],
            max_boxes=params["max_boxes"],
        )
        return "shards", metadata

    return run_step(
        name="preprocess",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"raw": raw, "base": base},
        params=params,
        artifacts=artifacts,
        extra_modules=(type(chosen).__module__,),
    )


def _tars(folder: InputFolder) -> Iterator[Any]:
    """Each tar with its boxes, fetched when its turn comes and let go of after it (they are read only once)."""
    from atelier.data.preprocess import RawTar

    names = folder.names("tars/*")
    if not names:
        raise DataError(f"{folder.manifest.uri}: no tars", "give the output of download")
    boxes = {PurePosixPath(name).stem: name for name in folder.names("boxes/*.npy")}
    for name in names:
        of_tar = boxes.get(PurePosixPath(name).name.split(".", 1)[0])
        yield RawTar(folder.fetch(name), folder.fetch(of_tar) if of_tar else None)
        folder.forget(name)
