"""The digest of the code that a step reaches: a changed line that could change its output is a cache miss.

Read from import statements alone, so nothing is executed: from the step's module over every ``atelier.*`` import,
also those inside functions, transitively. Comments, docstrings and formatting do not count.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from atelier.steps.code_facts import facts, remember

PACKAGE = "atelier"

#: Rooms that move or watch bytes but never make them: an edit there must not retrain anybody's model. A step to
#: which one of them does matter names it in ``extra_modules``.
NEUTRAL = (
    "atelier.errors",
    "atelier.progress",
    "atelier.storage",
    "atelier.tracking",
    "atelier.steps.artifact",
    "atelier.steps.peek",
    "atelier.steps.code_digest",
    "atelier.steps.code_facts",
    "atelier.steps.record",
    "atelier.steps.process",
    "atelier.steps.runtime",
    "atelier.steps.train_place",
    "atelier.training.delivery",
    "atelier.training.trainjob",
    "atelier.training.trainjob_settings",
    "atelier.training.callbacks.end_unwatched",
    "atelier.training.callbacks.keep_previews",
    "atelier.training.callbacks.trainer_status",
)


def code_digest(module: str, extra_modules: tuple[str, ...] = ()) -> str:
    """Sha256 (hex) over the code of every ``atelier`` module reachable from ``module`` and ``extra_modules``.

    Raises:
        ModuleNotFoundError: a module that was named does not exist.
    """
    digest = hashlib.sha256()
    for name in sorted(reachable((module, *extra_modules), named=extra_modules)):
        digest.update(f"{name}\0{facts(_source(name))[0]}\n".encode())
    remember()
    return digest.hexdigest()


def reachable(roots: tuple[str, ...], named: tuple[str, ...] = ()) -> set[str]:
    """Names of the modules reachable from ``roots``, without the neutral rooms (unless they are in ``named``)."""
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in seen or (_neutral(name) and name not in named and name not in roots):
            continue
        path = _source(name)
        seen.add(name)
        waiting.extend(_imports(path, name))
    return seen


def _neutral(name: str) -> bool:
    return any(name == room or name.startswith(room + ".") for room in NEUTRAL)


def _root() -> Path:
    return Path(__file__).resolve().parents[1]


def _find(name: str) -> Path | None:
    """The source file of a module: of ours without importing any parent package; of others by the import system."""
    if name.split(".")[0] == PACKAGE:
        return _find_ours(name)
    spec = importlib.util.find_spec(name)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@functools.cache
def _find_ours(name: str) -> Path | None:
    base = _root().joinpath(*name.split(".")[1:])
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def _source(name: str) -> Path:
    path = _find(name)
    if path is None:
        raise ModuleNotFoundError(f"no source for module {name!r}, so no code digest", name=name)
    return path


def _imports(path: Path, name: str) -> Iterator[str]:
    """Our modules that the file imports, and the packages they lie in (their ``__init__`` runs as well)."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for base, level, names in facts(path)[1]:
        if level:
            anchor = package.split(".")[: len(package.split(".")) - level + 1]
            base = ".".join([*anchor, base] if base else anchor)
        # "from a.b import c": c is a module of its own, or a name inside a.b.
        for target in [base, *(f"{base}.{each}" for each in names)]:
            if target.split(".")[0] != PACKAGE:
                continue
            parts = target.split(".")
            for end in range(2, len(parts) + 1):
                module = ".".join(parts[:end])
                if _find(module) is not None:
                    yield module
