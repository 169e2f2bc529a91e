"""Crops and masks that rich-context pictures are measured by: the kind ``metrics``."""

from collections.abc import Callable

from tests.parity.case import Case, Comparison

KINDS: dict[str, Callable[[Case], Comparison]] = {}
