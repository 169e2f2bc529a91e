"""Which of a run's outputs are there already: each step is asked to look under the key that its output would have."""

import importlib
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError
from atelier.orchestration.catalogue import Pipeline
from atelier.orchestration.walk import LATER, Call, Output, calls
from atelier.storage.manifest import Manifest
from atelier.storage.uri import is_local

PLACEHOLDER = "BUCKET"
"""What the shipped profiles have in the place of a bucket's name."""


@dataclass(frozen=True)
class Found:
    """What is known of a step's output.

    Attributes:
        cached: True: it is there; False: it would be made; None: not known.
        why: where it is not known.
        bytes: of the output that is there.
    """

    cached: bool | None = None
    why: str = ""
    bytes: int = 0


class _Artifact:
    """What a component's function is given in the place of KFP's artifact."""

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = str(path), dict[str, Any]()


def look(dag: Pipeline, arguments: dict[str, Any]) -> tuple[dict[str, Found], str]:
    """Looks for every step's output.

    Returns:
        (by task, a note for a person: "" or why nothing could be looked at).
    """
    place = str(arguments.get("artifacts", ""))
    if not is_local(place):
        if PLACEHOLDER in place:
            return {}, f"not looked at: {place} is the shipped profile's placeholder"
        note = _reachable(place)
        if note:
            return {}, note
    found: dict[str, Found] = {}
    functions = _functions(dag)
    with tempfile.TemporaryDirectory(prefix="atelier-plan-") as folder:
        made: dict[Output, Path] = {}
        for number, call in enumerate(calls(dag, arguments)):
            found[call.task] = _ask(call, functions, made, Path(folder) / str(number))
    return found, ""


def _reachable(place: str) -> str:
    """Why a remote place cannot be asked, in one short attempt; "" where it can."""
    from atelier.storage import s3

    try:
        s3.sizes(f"{place}/.none", quick=True)
    except AtelierError as error:
        return f"not looked at: {error.what}"
    return ""


def _functions(dag: Pipeline) -> dict[str, Callable[..., object]]:
    """The functions of the components that a pipeline's file knows, or a file beside it that it imports."""
    own = vars(importlib.import_module(f"pipelines.{dag.name}"))
    shared = [vars(each) for each in own.values() if inspect.ismodule(each) and each.__name__.startswith("pipelines.")]
    known = [each for names in (own, *shared) for each in names.values()]
    found = [each.python_func for each in known if inspect.isfunction(getattr(each, "python_func", None))]
    return {function.__name__: function for function in found}


def _ask(call: Call, functions: dict[str, Callable[..., object]], made: dict[Output, Path], folder: Path) -> Found:
    from atelier.steps.peek import NotMade, peeking

    missing = sorted({output.task for output in call.artifacts.values() if output and output not in made})
    if missing:
        return Found(False)
    later = [name for name, value in call.parameters.items() if value is LATER]
    if later or None in call.artifacts.values():
        return Found(None, f"depends on {', '.join(later) or 'a branch'}")
    folder.mkdir(parents=True)
    function = functions.get(call.function)
    if function is None:
        return Found(None, "not a step of ours")
    inputs = {name: _Artifact(made[output]) for name, output in call.artifacts.items() if output is not None}
    outputs = {name: _Artifact(folder / name) for name in call.outputs}
    wanted = inspect.signature(function).parameters
    known = {**call.parameters, **inputs, **outputs}
    try:
        with peeking():
            function(**{name: value for name, value in known.items() if name in wanted})
    except NotMade:
        return Found(False)
    except AtelierError as error:
        return Found(None, error.what)
    for name, artifact in outputs.items():
        made[Output(call.task, name)] = Path(artifact.path)
    return Found(True, bytes=sum(_bytes(Path(artifact.path)) for artifact in outputs.values()))


def _bytes(path: Path) -> int:
    try:
        return Manifest.parse(path.read_text(encoding="utf-8")).total_bytes
    except (AtelierError, OSError, UnicodeDecodeError):
        return 0  # a page or metrics, no manifest of ours
