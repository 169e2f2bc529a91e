"""Source: the URIs of published data, or canvases of real handwritten digits where none are given."""

from typing import Any

from atelier.data import raw_form
from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1


def run(
    *,
    tars: str,
    captions: str,
    boxes: str,
    images: int,
    seed: int,
    artifacts: str,
    pictures: str = "",
    recipe: str = "igligen_xl",
    profile: str = "laptop",
    form: str = "",
) -> Manifest:
    """A manifest of kind ``<form>-source`` (files of drawn digits) or ``source-uris`` (metadata alone).

    The form is the one named, else that of the recipe's raw data: of ``tars``, ``captions`` and ``boxes`` (SA-1B), of
    ``pictures``, ``captions`` and ``boxes`` (COCO), or without boxes (``coco-images``).

    Raises:
        ConfigError: some of the form's URIs are missing, or one is given that it does not know.
    """
    from atelier.recipes.registry import get

    chosen = raw_form.form(form or get(recipe, profile).raw_form)
    given = {"tars": tars, "pictures": pictures, "captions": captions, "boxes": boxes}
    unknown = [name for name, uri in given.items() if uri and name not in chosen.folders]
    if unknown:
        raise ConfigError(
            f"{' and '.join(unknown)} given, but {'this pipeline' if form else f'recipe {recipe}'} "
            f"reads {chosen.name} data",
            f"give {', '.join(chosen.folders)}",
        )
    uris = {name: given[name] for name in chosen.folders}
    if not any(uris.values()):
        from atelier.steps.digits import run as draw

        return draw(images=images, seed=seed, artifacts=artifacts, form=chosen.name)
    missing = [name for name, uri in uris.items() if not uri and name not in chosen.optional]
    if missing:
        raise ConfigError(
            f"no URI for {' and '.join(missing)}", f"give {', '.join(chosen.folders)} together, or none of them"
        )
    facts = {"form": chosen.name, **{name: uri for name, uri in uris.items() if uri}}

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        return "source-uris", facts

    return run_step(
        name="source", version=VERSION, module=__name__, produce=produce, inputs={}, params=facts, artifacts=artifacts
    )
