"""Preprocess: raw data to WebDataset shards of latents, embeddings and boxes, by the recipe's encoder."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest

if TYPE_CHECKING:
    from atelier.data.encoder import Encoder

VERSION = 2


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
    filters: str = "",
    resolutions: str = "",
) -> Manifest:
    """A manifest of kind ``shards``, see ``atelier.data.preprocess`` for its files and metadata.

    Args:
        raw: of a kind that ``data.raw_source.open_source`` knows.
        base: the frozen base (VAE and text encoders).
        samples_per_shard, batch_size, max_quarantined: 0 takes the recipe's own.
        workers: processes that encode; 0 is one for each GPU. No part of the cache key: it changes no byte.
        filters: fields of ``data.filters.Filters``, a JSON object, in the place of the recipe's own.
        resolutions: sides of the squares that are encoded, e.g. "256,512", the recipe's own among them; "" is that
            alone.

    A recipe that has ``encoding`` shares its shards with others in which it is the same: neither the recipe's name nor
    which of the resolutions is its own is part of the cache key.

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
        filters=filters,
        resolutions=resolutions,
    )
    chosen = registry.get(recipe, profile)
    chosen.check_base(InputFolder(base).fetch)

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.data.preprocess import EncoderSpec, Settings, open_source, preprocess
        from atelier.data.quarantine import Quarantine

        settings = Settings.of(
            {
                "res": params["resolution"],
                "batch": params["batch_size"],
                **{name: params[name] for name in ("samples_per_shard", *chosen.sample_settings)},
                "also": params.get("also", ()),
            }
        )
        base_folder = str(ctx.inputs["base"].fetch_all())
        began = time.monotonic()
        metadata = preprocess(
            open_source(raw),
            EncoderSpec(f"{__name__}:make_encoder", {"recipe": recipe, "profile": profile, "base": base_folder}),
            ctx.out,
            settings,
            Quarantine(params["max_quarantined"], ctx.out.path / "quarantine.jsonl"),
            total=raw.metadata.get("images"),
            workers=workers,
        )
        metadata |= chosen.features(Path(base_folder))
        _say(metadata)
        ctx.note(
            images_per_s=round(metadata["samples"] / max(time.monotonic() - began, 1e-3), 1),
            recipe=recipe,
            profile=profile,
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
    filters: str = "",
    resolutions: str = "",
) -> dict[str, Any]:
    """The parameters with the recipe's own in the place of zeros.

    Raises:
        ConfigError: a parameter out of range, or one that the recipe does not have.
    """
    from atelier.recipes import registry

    chosen = registry.get(recipe, profile)
    settings = dict(chosen.sample_settings)
    if filters and "filters" not in settings:
        raise ConfigError(f"filters given, but recipe {recipe} filters nothing", "leave it empty")
    if "filters" in settings:
        from atelier.data.filters import changed

        settings["filters"] = asdict(changed(settings["filters"], filters))
    least, *also = _sides(chosen, recipe, resolutions) if resolutions else [chosen.config.resolution]
    encoding = getattr(chosen, "encoding", None)
    params = {
        **({"recipe": recipe, "profile": profile} if encoding is None else {"encoding": encoding}),
        "resolution": least,
        "samples_per_shard": samples_per_shard or chosen.config.samples_per_shard,
        "batch_size": batch_size or chosen.config.encode_batch,
        "max_quarantined": max_quarantined or chosen.config.max_quarantined,
        **settings,
        **({"also": also} if also else {}),
    }
    counts = (params["samples_per_shard"], params["batch_size"], workers + 1)
    if min(counts) < 1 or not 0 <= params["max_quarantined"] < 1:
        raise ConfigError(
            f"samples_per_shard={samples_per_shard}, batch_size={batch_size}, max_quarantined={max_quarantined}, "
            f"workers={workers}",
            "counts must be 1 or more (0: the recipe's own), the share at least 0 and below 1",
        )
    return params


def _sides(chosen: Any, recipe: str, resolutions: str) -> list[int]:
    """The resolutions, the smallest first.

    Raises:
        ConfigError: the recipe encodes one alone, its own is not among them, or they are no multiples of 8.
    """
    own = chosen.config.resolution
    if not getattr(chosen, "several_resolutions", False):
        raise ConfigError(f"resolutions given, but recipe {recipe} encodes {own} px alone", "leave it empty")
    try:
        sides = {int(side) for side in resolutions.split(",")}
    except ValueError:
        sides = set()
    if own not in sides or any(side < 8 or side % 8 for side in sides):
        raise ConfigError(
            f"resolutions={resolutions!r}",
            f"give multiples of 8 with commas between them, the recipe's {own} among them",
        )
    return sorted(sides)


def _say(metadata: dict[str, Any]) -> None:
    """What a person should know of the samples, on the step's output."""
    for name in ("filtered", "quarantined"):
        if found := metadata[name]:
            print(f"{name}: {', '.join(f'{count:,} × {reason}' for reason, count in found.items())}", flush=True)
    counts = metadata.get("counts", {})
    if cut := counts.get("captions_cut"):
        tokens = counts["tokens_cut"]
        print(f"{cut:,} captions are longer than the model reads: {tokens:,} tokens at their ends are lost", flush=True)
    if unsized := counts.get("pictures_unsized"):
        print(f"{unsized:,} pictures have no size beside them (<image>.json): taken as having no border", flush=True)
    if cut := counts.get("descriptions_cut"):
        print(f"{cut:,} descriptions are longer than the model reads: their ends are lost", flush=True)
    if left_out := counts.get("regions_left_out"):
        pictures = counts["pictures_limited"]
        print(f"{left_out:,} regions left out: {pictures:,} pictures have more tokens than allowed", flush=True)


def make_encoder(recipe: str, profile: str, base: str) -> "Encoder":
    """The recipe's encoder over the frozen base in a folder; called in each worker process."""
    from atelier.recipes import registry

    encoder: Encoder = registry.get(recipe, profile).encoder(Path(base))
    return encoder
