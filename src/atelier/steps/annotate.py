"""Annotate: images to grounded annotations (boxes, a caption for each, its embedding) or rich labels, in shards."""

import sys
import time
from typing import Any

from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 2


def run(
    *,
    raw: Manifest,
    annotators: Manifest,
    profile: str,
    box_threshold: float,
    text_threshold: float,
    batch_size: int,
    caption_batch_size: int,
    images_per_shard: int,
    max_quarantined: float,
    artifacts: str,
    workers: int = 0,
    recipe: str = "gligen_coco",
    prompt: str = "",
    caption_prompt: str = "",
) -> Manifest:
    """A manifest of kind ``coco-annotations``: shards in the form of ``atelier.data.coco_annotated``; of the recipe
    rich_context of kind ``rich-context-labels``: shards of ``label_<image>.json`` in the form of ``data.rich_label``.

    Args:
        raw: kind ``coco-images-raw`` (or ``coco-raw``, whose boxes are not looked at), or ``rich-context-images-raw``.
        annotators: kind ``annotators``.
        profile: laptop or paper.
        box_threshold, text_threshold, batch_size, caption_batch_size, images_per_shard, max_quarantined: 0 takes the
            profile's own, see ``annotate.config``.
        workers: processes; 0 is one for each GPU. No part of the cache key: it changes no byte.
        recipe: what is annotated for.
        prompt, caption_prompt: what is asked about an object, and about a picture without a caption; "" is the
            profile's own, "none" asks nothing. Of the recipe rich_context alone.

    Raises:
        ConfigError: a parameter out of range, or a model that cannot be loaded. DataError: too many unusable images.
        AtelierError: a worker died.
    """
    from pydantic import ValidationError

    from atelier.annotate import config

    own = config.get(profile, recipe)
    given: dict[str, Any] = {
        "box_threshold": box_threshold,
        "text_threshold": text_threshold,
        "batch": batch_size,
        "caption_batch": caption_batch_size,
        "images_per_shard": images_per_shard,
        "max_quarantined": max_quarantined,
        "prompt": prompt,
        "caption_prompt": caption_prompt,
    }
    given = {name: value for name, value in given.items() if value}
    if strange := sorted(given.keys() - type(own).model_fields.keys()):
        raise ConfigError(f"{strange[0]} given, which annotating for {recipe} does not use", "leave it out")
    try:
        chosen = type(own)(**own.model_dump() | given)
    except ValidationError as error:
        wrong = "; ".join(f"{each['loc'][0]}={each['input']}: {each['msg']}" for each in error.errors())
        raise ConfigError(wrong, "counts must be 1 or more, shares from 0 to 1 (0: the profile's own)") from error
    if workers < 0:
        raise ConfigError(f"workers={workers}", "give 1 or more; 0 is one for each GPU")

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.annotate import shards
        from atelier.data.quarantine import Quarantine

        quarantine = Quarantine(chosen.max_quarantined, ctx.out.path / "quarantine.jsonl")
        began = time.monotonic()
        made = shards.annotate(raw, chosen, annotators.metadata["models"], ctx.out, quarantine, workers)
        ctx.note(images_per_s=round(made["samples"] / max(time.monotonic() - began, 1e-3), 2))
        if not made["boxes"]["kept"]:
            print("warning: no box was found in any image: lower box_threshold, or look at the tags", file=sys.stderr)
        return chosen.makes, made

    return run_step(
        name="annotate",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"raw": raw, "annotators": annotators},
        # The models are the other step's: here stands what they are to do.
        params={"recipe": recipe, **chosen.model_dump(exclude={*chosen.models, "vocabulary"})},
        artifacts=artifacts,
        extra_modules=("atelier.data.preprocess_worker", chosen.work.partition(":")[0]),
    )
