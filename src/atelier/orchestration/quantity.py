"""Kubernetes quantities (``500m``, ``16Gi``) as numbers; the ``kubernetes`` client has the same and imports slowly."""

from decimal import Decimal

from atelier.errors import ConfigError

PATTERN = r"^\d+(\.\d+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_UNITS = {
    "": Decimal(1),
    **{name: Decimal(1000) ** -power for power, name in enumerate(("m", "u", "n"), 1)},
    **{name: Decimal(1000) ** power for power, name in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{name: Decimal(1024) ** power for power, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
"""More than a profile may write: a server answers with any of them."""


def parse(text: str | int | float) -> Decimal:
    """The number (bytes, CPUs, pieces).

    Raises:
        ConfigError: it is no quantity.
    """
    word = str(text)
    number = word.rstrip("numkKMGTPEi")
    try:
        return Decimal(number) * _UNITS[word[len(number) :]]
    except (ArithmeticError, KeyError):
        raise ConfigError(f"{word!r} is no Kubernetes quantity", "write e.g. 500m, 4 or 16Gi") from None
