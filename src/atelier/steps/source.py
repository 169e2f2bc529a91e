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
) -> Manifest:
    """A manifest of kind ``<form>-source`` (files of drawn digits) or ``source-uris`` (metadata alone).

    The form is that of the recipe's raw data: of ``tars``, ``captions`` and ``boxes`` (SA-1B) or ``pictures``,
    ``captions`` and ``boxes`` (COCO).

    Raises:
        ConfigError: see ``check``.
    """
    from atelier.recipes.registry import get

    uris = check(
        tars=tars,
        captions=captions,
        boxes=boxes,
        images=images,
        seed=seed,
        pictures=pictures,
        recipe=recipe,
        profile=profile,
    )
    form = get(recipe, profile).raw_form
    if not uris:
        from atelier.steps.digits import run as draw

        return draw(images=images, seed=seed, artifacts=artifacts, form=form)
    facts = {"form": form, **uris}

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        return "source-uris", facts

    return run_step(
        name="source", version=VERSION, module=__name__, produce=produce, inputs={}, params=facts, artifacts=artifacts
    )


def check(
    *,
    tars: str,
    captions: str,
    boxes: str,
    images: int,
    seed: int,
    pictures: str = "",
    recipe: str = "igligen_xl",
    profile: str = "laptop",
) -> dict[str, str]:
    """The URIs that were given, by what they are for; none where digits are to be drawn.

    Raises:
        ConfigError: some of the form's URIs are missing, one is given that it does not know, or no image is to be
            drawn.
    """
    from atelier.recipes.registry import get
    from atelier.steps import digits

    form = raw_form.form(get(recipe, profile).raw_form)
    given = {"tars": tars, "pictures": pictures, "captions": captions, "boxes": boxes}
    unknown = [name for name, uri in given.items() if uri and name not in form.folders]
    if unknown:
        raise ConfigError(
            f"{' and '.join(unknown)} given, but recipe {recipe} reads {form.name} data",
            f"give {', '.join(form.folders)}",
        )
    uris = {name: given[name] for name in form.folders}
    if not any(uris.values()):
        digits.check(images=images, seed=seed)
        return {}
    missing = [name for name, uri in uris.items() if not uri and name not in form.optional]
    if missing:
        raise ConfigError(
            f"no URI for {' and '.join(missing)}", f"give {', '.join(form.folders)} together, or none of them"
        )
    return {name: uri for name, uri in uris.items() if uri}
