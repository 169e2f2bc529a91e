"""Every parameter accounted for: what is missing, unknown or of another shape is listed."""

import re
from collections.abc import Iterable, Mapping

from atelier.errors import ConfigError

Shape = tuple[int, ...]

_NUMBER = re.compile(r"(?<=[._])\d+(?=[._]|$)")


def require_same_keys(found: Mapping[str, Shape], expected: Mapping[str, Shape], what: str, fix: str) -> None:
    """Compares names and shapes.

    Raises:
        ConfigError: they differ; lists every difference, see ``listed``.
    """
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{name} {tuple(found[name])} for {tuple(expected[name])}"
            for name in sorted(found.keys() & expected.keys())
            if tuple(found[name]) != tuple(expected[name])
        ],
    }
    wrong = [listed(kind, names) for kind, names in kinds.items() if names]
    if wrong:
        raise ConfigError(f"{what}: {'; '.join(wrong)}", fix)


def listed(kind: str, names: Iterable[str]) -> str:
    """``14 missing keys: a, blocks.*.b (12), c``: all of them, those that differ in their numbers alone as one."""
    every = list(names)
    alike: dict[str, list[str]] = {}
    for name in every:
        alike.setdefault(_NUMBER.sub("*", name), []).append(name)
    shown = [f"{pattern} ({len(found)})" if len(found) > 1 else found[0] for pattern, found in alike.items()]
    return f"{len(every)} {kind} key{'s' if len(every) != 1 else ''}: {', '.join(shown)}"
