"""Recipes by name. A recipe is one module in this folder with ``PROFILES`` and ``Recipe``.

A recipe that trains in stages has the later ones in ``STAGES`` (name → profiles); ``igligen_xl:1024`` names one. Which
recipe's model a stage starts from is in ``PREDECESSORS``.
"""

import importlib
from typing import Any

from pydantic import ValidationError

from atelier.errors import ConfigError

RECIPES = ("crossflow", "gligen_coco", "igligen_xl", "rich_context")


def names() -> tuple[str, ...]:
    """Every recipe's name."""
    return RECIPES


def profiles(recipe: str) -> tuple[str, ...]:
    """A recipe's profiles."""
    return tuple(_module(recipe).PROFILES)


def get(recipe: str, profile: str, overrides: dict[str, Any] | None = None) -> Any:
    """The recipe at a profile, with fields of its configuration replaced.

    Args:
        recipe: its name, and after a colon the stage; without one it is the first.
        overrides: by field name; fields of ``train`` as a dict under "train".

    Raises:
        ConfigError: an unknown recipe, stage, profile or field, or a value that does not fit.
    """
    module = _module(recipe)
    known = _profiles(module, recipe)
    if profile not in known:
        raise ConfigError(f"recipe {recipe} has no profile {profile!r}", f"use one of {', '.join(known)}")
    config = known[profile]
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


def module_of(recipe: str) -> str:
    """The name of the module that a recipe (or a stage of it) is written in."""
    return f"atelier.recipes.{recipe.partition(':')[0]}"


def predecessor_of(recipe: str) -> str:
    """The recipe (with its stage) whose model this one starts from, by its module's ``PREDECESSORS``; "" for none."""
    before: dict[str, str] = getattr(_module(recipe), "PREDECESSORS", {})
    return before.get(recipe.partition(":")[2], "")


def _module(recipe: str) -> Any:
    name = recipe.partition(":")[0]
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}", f"use one of {', '.join(RECIPES)}")
    return importlib.import_module(module_of(recipe))


def _profiles(module: Any, recipe: str) -> dict[str, Any]:
    """The profiles of a recipe's stage."""
    name, _, stage = recipe.partition(":")
    stages: dict[str, dict[str, Any]] = {"": module.PROFILES, **getattr(module, "STAGES", {})}
    if stage not in stages:
        later = ", ".join(f"{name}:{known}" for known in stages if known)
        raise ConfigError(f"recipe {name} has no stage {stage!r}", f"use one of {name}{', ' + later if later else ''}")
    return stages[stage]
