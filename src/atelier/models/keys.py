"""Every parameter accounted for: what is missing, unknown or of another shape is listed."""

from collections.abc import Iterable, Mapping

from atelier.errors import ConfigError

Shape = tuple[int, ...]
LISTED = 10


def require_same_keys(found: Mapping[str, Shape], expected: Mapping[str, Shape], what: str, fix: str) -> None:
    """Compares names and shapes.

    Raises:
        ConfigError: they differ; the count and the first ten of each kind of difference.
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
    """``2 missing keys: a, b``; of more than ten the first ten."""
    every = list(names)
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return f"{len(every)} {kind} key{'s' if len(every) != 1 else ''}: {', '.join(every[:LISTED])}{more}"
