import re

import pytest

from atelier.errors import ConfigError
from atelier.models.keys import listed, require_same_keys


def test_every_key_is_listed_and_those_that_differ_in_numbers_alone_as_one() -> None:
    names = [f"blocks.{n}.{part}" for n in range(12) for part in ("b", "w")] + ["fc1.w", "layers.3"]
    assert listed("missing", names) == "26 missing keys: blocks.*.b (12), blocks.*.w (12), fc1.w, layers.3"
    assert listed("unknown", ["a.0"]) == "1 unknown key: a.0"


def test_both_shapes_of_a_misshapen_key_are_told() -> None:
    found = {"a.0.w": (3,), "a.1.w": (3,), "b": (2, 2)}
    expected = {"a.0.w": (4,), "a.1.w": (4,), "b": (2, 5), "c": (1,)}
    said = "x: 1 missing key: c; 3 misshapen keys: a.*.w (3,) for (4,) (2), b (2, 2) for (2, 5)"
    with pytest.raises(ConfigError, match=re.escape(said)):
        require_same_keys(found, expected, "x", "take another")
