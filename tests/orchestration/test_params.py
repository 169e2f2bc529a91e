"""Parameters from text."""

import pytest

from atelier.errors import ConfigError
from atelier.orchestration.catalogue import Parameter
from atelier.orchestration.params import parse, split, validate


def known(kind: str, default: object = 0, choices: tuple[str, ...] = ()) -> dict[str, Parameter]:
    return {"p": Parameter("p", kind, default, "", choices)}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "1_000", 1000),
        ("int", "-1", -1),
        ("float", "2e-3", 2e-3),
        ("float", "3", 3.0),
        ("bool", "yes", True),
        ("bool", "False", False),
        ("str", "$(x) 'y'", "$(x) 'y'"),
        ("list", "[1, 2]", [1, 2]),
        ("dict", '{"a": 1}', {"a": 1}),
    ],
)
def test_values(kind: str, text: str, value: object) -> None:
    assert validate({"p": text}, known(kind)) == {"p": value}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("int", "1.5"),
        ("float", "nan"),
        ("float", "inf"),
        ("bool", "maybe"),
        ("list", "{}"),
        ("dict", "{"),
        ("str", "{{$.inputs}}"),
        ("str", "a\0b"),
        ("int", ""),
    ],
)
def test_refused(kind: str, text: str) -> None:
    with pytest.raises(ConfigError, match="p"):
        validate({"p": text}, known(kind))


def test_a_value_that_must_be_given() -> None:
    with pytest.raises(ConfigError, match="no value for p"):
        validate({}, known("int", None))


def test_words() -> None:
    assert parse(split("a=1 b='two words' c=x=y d=$(rm x)")[:3]) == {"a": "1", "b": "two words", "c": "x=y"}
    with pytest.raises(ConfigError, match="cannot be read"):
        split("a='1")
    with pytest.raises(ConfigError, match="given twice"):
        parse(["a=1", "a=2"])


def test_json_keeps_its_quotes() -> None:
    """As docs/data_writing.md and docs/evaluation.md write it; what a person quoted for a shell stays that."""
    found = parse(split("""a=1 filters={"min_side": 512, "nsfw": ["A b", "{"]} b='two words' bars={"fid":12}"""))
    assert found == {
        "a": "1",
        "filters": '{"min_side": 512, "nsfw": ["A b", "{"]}',
        "b": "two words",
        "bars": '{"fid":12}',
    }
    assert split("""c='{"nodes": 2}' d=["x"]""") == ['c={"nodes": 2}', 'd=["x"]']
    assert split("""t="say x={} now" u={000..199}.tgz v={a,b}""") == ["t=say x={} now", "u={000..199}.tgz", "v={a,b}"]
    assert split("a={} b={}") == ["a={}", "b={}"]
