"""YAML read by libyaml: compiled pipelines are long, and Python's own parser takes a second for each."""

from functools import lru_cache
from typing import Any

import yaml


@lru_cache(maxsize=64)
def documents(text: str | bytes) -> tuple[Any, ...]:
    """A text's documents. They are shared with the next who asks: not to be changed."""
    return tuple(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
