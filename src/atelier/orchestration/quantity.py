"""Kubernetes quantities (``500m``, ``16Gi``) as numbers; the ``kubernetes`` client has the same and imports slowly."""

from decimal import Decimal

from atelier.errors import ConfigError

PATTERN = r"^\d+(\.\d+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_UNITS = {
    "m": Decimal("0.001"),
    **{name: Decimal(1000) ** power for power, name in enumerate(("k", "M", "G", "T", "P"), 1)},
    **{name: Decimal(1024) ** power for power, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), 1)},
}


def parse(text: str | int | float) -> Decimal:
    """The number (bytes, CPUs, pieces).

    Raises:
        ConfigError: it is no quantity.
    """
    word = str(text)
    number = word.rstrip("kmKMGTPi")
    try:
        return Decimal(number) * _UNITS.get(word[len(number) :], Decimal(1))
    except ArithmeticError:
        raise ConfigError(f"{word!r} is no Kubernetes quantity", "write e.g. 500m, 4 or 16Gi") from None
