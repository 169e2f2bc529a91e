"""Source: the URIs of published data, or canvases of real handwritten digits where none are given."""

from pathlib import PurePosixPath
from typing import Any

from atelier.data import raw_form
from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.digest import sha256_json
from atelier.storage.manifest import Manifest
from atelier.storage.state import state

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
    form: str = "",
) -> Manifest:
    """A manifest of kind ``<form>-source`` (files of drawn digits) or ``source-uris`` (metadata alone).

    The form is the one named, else the one of those that the recipe reads that knows what was given: ``tars``,
    ``captions`` and ``boxes`` (SA-1B), ``latents`` and ``boxes`` (SA-1B encoded already), ``pictures``, ``captions``
    and ``boxes`` (COCO), or without boxes (``coco-images``), ``pictures`` and ``captions`` (a list of prompts), or
    ``pictures`` alone (img2dataset's tars).

    Raises:
        ConfigError: see ``check``.
    """
    from atelier.recipes.registry import get

    chosen, uris = check(
        tars=tars,
        captions=captions,
        boxes=boxes,
        images=images,
        seed=seed,
        pictures=pictures,
        latents=latents,
        recipe=recipe,
        profile=profile,
        form=form,
    )
    if not uris:
        from atelier.steps.digits import run as draw

        size = get(recipe, profile).config.resolution
        return draw(images=images, seed=seed, artifacts=artifacts, form=chosen, size=size)
    facts = {"form": chosen, **where(uris)}

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        return "source-uris", facts

    return run_step(
        name="source", version=VERSION, module=__name__, produce=produce, inputs={}, params=facts, artifacts=artifacts
    )


def where(uris: dict[str, str]) -> dict[str, str]:
    """The addresses, and under ``state`` a mark of what lies there now: data that changed are other data.

    Raises:
        DataError, StorageError, ServiceError: a folder or bucket that cannot be listed.
    """
    states = {name: mark for name, uri in sorted(uris.items()) if (mark := state(uri))}
    return {**uris, **({"state": sha256_json(states)[:16]} if states else {})}


def check(
    *,
    tars: str,
    captions: str,
    boxes: str,
    images: int,
    seed: int,
    pictures: str = "",
    latents: str = "",
    recipe: str = "igligen_xl",
    profile: str = "laptop",
    form: str = "",
) -> tuple[str, dict[str, str]]:
    """The form's name and the URIs that were given, by what they are for; none where digits are to be drawn.

    Raises:
        ConfigError: some of the form's URIs are missing, one is given that it does not know, or no image is to be
            drawn.
    """
    from atelier.recipes.registry import get
    from atelier.steps import digits

    forms = [raw_form.form(name) for name in ([form] if form else get(recipe, profile).raw_forms)]
    addresses = {"tars": tars, "latents": latents, "pictures": pictures, "captions": captions, "boxes": boxes}
    given = {name for name, uri in addresses.items() if uri}
    if not given:
        digits.check(images=images, seed=seed)
        return forms[0].name, {}
    # A form that lacks nothing, and holds such files, goes before one that would want more.
    knowing = [each for each in forms if given <= each.folders.keys()]
    whole = [each for each in knowing if not _missing(each, given) and all(_holds(each, addresses[n]) for n in given)]
    chosen = next(iter(whole or knowing), None)
    if chosen is None:
        raise ConfigError(
            f"{' and '.join(sorted(given))} given, but {'this pipeline' if form else f'recipe {recipe}'} reads "
            f"{' or '.join(each.name for each in forms)} data",
            " or ".join(f"give {', '.join(each.folders)}" for each in forms),
        )
    if missing := _missing(chosen, given):
        raise ConfigError(
            f"no URI for {' and '.join(missing)}", f"give {', '.join(chosen.folders)} together, or none of them"
        )
    return chosen.name, {name: addresses[name] for name in chosen.folders if name in given}


def _holds(form: raw_form.RawForm, uri: str) -> bool:
    """Whether files of a URI's ending may be of the form; a folder, a list or ``*`` may hold anything."""
    name = uri.split("#", 1)[0].rsplit("/", 1)[-1]
    ending = PurePosixPath(name).suffix
    return uri.startswith("@") or not ending[1:].isalnum() or form.kind_of(name) is not None


def _missing(form: raw_form.RawForm, given: set[str]) -> list[str]:
    return [name for name in form.folders if name not in given and name not in form.optional]
