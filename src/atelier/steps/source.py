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
    latents: str = "",
    recipe: str = "igligen_xl",
    profile: str = "laptop",
) -> Manifest:
    """A manifest of kind ``<form>-source`` (files of drawn digits) or ``source-uris`` (metadata alone).

    The form is the one of those that the recipe reads that knows what was given: ``tars``, ``captions`` and ``boxes``
    (SA-1B), ``latents`` and ``boxes`` (SA-1B encoded already), or ``pictures``, ``captions`` and ``boxes`` (COCO).

    Raises:
        ConfigError: some of the form's URIs are missing, or one is given that it does not know.
    """
    from atelier.recipes.registry import get

    chosen = get(recipe, profile)
    forms = [raw_form.form(name) for name in chosen.raw_forms]
    addresses = {"tars": tars, "latents": latents, "pictures": pictures, "captions": captions, "boxes": boxes}
    given = {name for name, uri in addresses.items() if uri}
    if not given:
        from atelier.steps.digits import run as draw

        size = chosen.config.resolution
        return draw(images=images, seed=seed, artifacts=artifacts, form=forms[0].name, size=size)
    form = next((form for form in forms if given <= form.folders.keys()), None)
    if form is None:
        raise ConfigError(
            f"{' and '.join(sorted(given))} given, but recipe {recipe} reads "
            f"{' or '.join(form.name for form in forms)} data",
            " or ".join(f"give {', '.join(form.folders)}" for form in forms),
        )
    uris = {name: addresses[name] for name in form.folders}
    missing = [name for name, uri in uris.items() if not uri and name not in form.optional]
    if missing:
        raise ConfigError(
            f"no URI for {' and '.join(missing)}", f"give {', '.join(form.folders)} together, or none of them"
        )
    facts = {"form": form.name, **{name: uri for name, uri in uris.items() if uri}}

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        return "source-uris", facts

    return run_step(
        name="source", version=VERSION, module=__name__, produce=produce, inputs={}, params=facts, artifacts=artifacts
    )
