"""What the steps refuse by their parameters alone, asked of the steps themselves before the first one starts.

A step's module may have ``check(…)``, which takes some of ``run``'s parameters and raises what ``run`` would raise for
them. The compiled pipeline says which of its parameters reach which step.
"""

import importlib
import importlib.util
import inspect
from typing import Any

from atelier.errors import AtelierError
from atelier.orchestration.catalogue import Pipeline
from atelier.orchestration.walk import LATER, calls

STEPS = "atelier.steps"


def check_steps(dag: Pipeline, arguments: dict[str, Any], here: bool = True) -> None:
    """Asks every step of a run.

    Args:
        arguments: the pipeline's parameters; the others are at their defaults.
        here: whether the steps will run on this machine, so that what it cannot do counts too.

    Raises:
        AtelierError: as the step would raise it, with the step's name.
    """
    for call in calls(dag, arguments):
        check = _check_of(call.function) if call.function and call.certain else None
        if check is None:
            continue
        asked = inspect.signature(check).parameters
        known = {**call.parameters, "here": here}
        if any(known.get(name) is LATER for name in asked):
            continue
        try:
            check(**{name: value for name, value in known.items() if name in asked})
        except AtelierError as error:
            raise type(error)(f"step {call.task} would fail: {error.what}", error.fix) from error


def _check_of(function: str) -> Any:
    """``check`` of the step that a component calls: both have one name."""
    module = f"{STEPS}.{function}"
    if importlib.util.find_spec(module) is None:
        return None
    return getattr(importlib.import_module(module), "check", None)
