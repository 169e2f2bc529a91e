"""Preprocess: raw data to WebDataset shards of latents, embeddings and boxes, by the recipe's encoder."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest

if TYPE_CHECKING:
    from atelier.data.encoder import Encoder

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
    workers: int = 0,
) -> Manifest:
    """A manifest of kind ``shards``, see ``atelier.data.preprocess`` for its files and metadata.

    Args:
        raw: kind ``sa1b-raw`` or ``coco-raw``.
        base: the frozen base (VAE and text encoders).
        samples_per_shard, batch_size, max_quarantined: 0 takes the recipe's own.
        workers: processes that encode; 0 is one for each GPU. No part of the cache key: it changes no byte.

    Raises:
        ConfigError: see ``check``. DataError: too many unusable samples. AtelierError: a worker died.
    """
    from atelier.recipes import registry

    params = check(
        recipe=recipe,
        profile=profile,
        samples_per_shard=samples_per_shard,
        batch_size=batch_size,
        max_quarantined=max_quarantined,
        workers=workers,
    )
    chosen = registry.get(recipe, profile)
    chosen.check_base(InputFolder(base).fetch)

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.data.preprocess import EncoderSpec, Settings, open_source, preprocess
        from atelier.data.quarantine import Quarantine

        base_folder = str(ctx.inputs["base"].fetch_all())
        began = time.monotonic()
        metadata = preprocess(
            open_source(raw),
            EncoderSpec(f"{__name__}:make_encoder", {"recipe": recipe, "profile": profile, "base": base_folder}),
            ctx.out,
            Settings(
                res=params["resolution"],
                samples_per_shard=params["samples_per_shard"],
                batch=params["batch_size"],
                **chosen.box_rules,
            ),
            Quarantine(params["max_quarantined"], ctx.out.path / "quarantine.jsonl"),
            total=raw.metadata.get("images"),
            workers=workers,
        )
        ctx.note(images_per_s=round(metadata["samples"] / max(time.monotonic() - began, 1e-3), 1))
        return "shards", metadata

    return run_step(
        name="preprocess",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"raw": raw, "base": base},
        params=params,
        artifacts=artifacts,
        # Both are reached by name: the recipe through the registry, the worker as a process.
        extra_modules=(type(chosen).__module__, "atelier.data.preprocess_worker"),
    )


def check(
    *,
    recipe: str,
    profile: str,
    samples_per_shard: int,
    batch_size: int,
    max_quarantined: float,
    workers: int = 0,
) -> dict[str, Any]:
    """The parameters with the recipe's own in the place of zeros.

    Raises:
        ConfigError: a parameter out of range.
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
        **chosen.box_rules,
    }
    counts = (params["samples_per_shard"], params["batch_size"], workers + 1)
    if min(counts) < 1 or not 0 <= params["max_quarantined"] < 1:
        raise ConfigError(
            f"samples_per_shard={samples_per_shard}, batch_size={batch_size}, max_quarantined={max_quarantined}, "
            f"workers={workers}",
            "counts must be 1 or more (0: the recipe's own), the share at least 0 and below 1",
        )
    return params


def make_encoder(recipe: str, profile: str, base: str) -> "Encoder":
    """The recipe's encoder over the frozen base in a folder; called in each worker process."""
    from atelier.recipes import registry

    encoder: Encoder = registry.get(recipe, profile).encoder(Path(base))
    return encoder
