"""Recipes by name. A recipe is one module in this folder with ``PROFILES`` and ``Recipe``."""

import importlib
from typing import Any

from pydantic import ValidationError

from atelier.errors import ConfigError

RECIPES = ("gligen_coco", "igligen_xl")


def names() -> tuple[str, ...]:
    """Every recipe's name."""
    return RECIPES


def profiles(recipe: str) -> tuple[str, ...]:
    """A recipe's profiles."""
    return tuple(_module(recipe).PROFILES)


def get(recipe: str, profile: str, overrides: dict[str, Any] | None = None) -> Any:
    """The recipe at a profile, with fields of its configuration replaced.

    Args:
        overrides: by field name; fields of ``train`` as a dict under "train".

    Raises:
        ConfigError: an unknown recipe, profile or field, or a value that does not fit.
    """
    module = _module(recipe)
    if profile not in module.PROFILES:
        raise ConfigError(f"recipe {recipe} has no profile {profile!r}", f"use one of {', '.join(module.PROFILES)}")
    config = module.PROFILES[profile]
    values = config.model_dump()
    overrides = dict(overrides or {})
    train = {**values["train"], **overrides.pop("train", {})}
    try:
        config = type(config).model_validate({**values, **overrides, "train": train})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
        raise ConfigError(f"recipe {recipe}, profile {profile}: {problems}", "correct the named parameter") from error
    return module.Recipe(profile, config)


def _module(recipe: str) -> Any:
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}", f"use one of {', '.join(RECIPES)}")
    return importlib.import_module(f"atelier.recipes.{recipe}")
