"""Which pipelines there are, and what each one's parameters are, read from the compiled pipeline itself."""

import contextlib
import difflib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.orchestration.project import enter

Value = str | int | float | bool


@dataclass(frozen=True)
class Parameter:
    """A pipeline parameter as the Kubeflow page shows it.

    Attributes:
        type: ``str``, ``int``, ``float``, ``bool``, ``list`` or ``dict``.
        default: None where a value must be given.
        choices: the values of the select box; () where any value goes.
    """

    name: str
    type: str
    default: Any
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """One file of ``pipelines/``.

    Attributes:
        graph: the DAG, a KFP graph component.
        choices: values of parameters that have a fixed set of them.
        settle: the file's ``settle``: all arguments → those that it decides, before anything runs; None without one.
    """

    name: str
    graph: Any
    choices: dict[str, tuple[str, ...]]
    settle: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    @property
    def description(self) -> str:
        return str(self.graph.description or "").strip()

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        return {
            name: Parameter(
                name,
                _TYPES[spec.type],
                spec.default,
                " ".join((spec.description or "").split()),
                self.choices.get(name, ()),
            )
            for name, spec in (self.graph.component_spec.inputs or {}).items()
        }

    def defaults(self) -> dict[str, Any]:
        """Every parameter's default."""
        return {name: parameter.default for name, parameter in self.parameters.items()}


_TYPES = {
    "String": "str",
    "Integer": "int",
    "Float": "float",
    "Double": "float",
    "Boolean": "bool",
    "Bool": "bool",
    "List": "list",
    "Dict": "dict",
}


def names(project: Path) -> list[str]:
    """The pipelines' names: the files of ``pipelines/``."""
    return sorted(path.stem for path in (project / "pipelines").glob("*.py") if not path.stem.startswith("_"))


def load(project: Path, name: str) -> Pipeline:
    """Imports ``pipelines/<name>.py``, whose ``pipeline`` is the DAG.

    Raises:
        ConfigError: there is no such pipeline; the nearest names are given.
    """
    known = names(project)
    if name not in known:
        raise ConfigError(f"there is no pipeline {name!r}{nearest(name, known)}", f"one of: {', '.join(known)}")
    enter(project)
    # KFP says on standard output what a person at the terminal has no use for.
    with contextlib.redirect_stdout(io.StringIO()):
        module = importlib.import_module(f"pipelines.{name}")
    return Pipeline(name, module.pipeline, dict(getattr(module, "CHOICES", {})), getattr(module, "settle", None))


def nearest(name: str, known: list[str]) -> str:
    """``"; did you mean …?"`` or nothing."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
