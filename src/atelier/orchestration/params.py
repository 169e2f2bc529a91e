"""A run's parameters: read from ``k=v`` words, checked against the pipeline before anything starts.

Values reach no shell: they travel as environment variables to the command line and as JSON to the steps.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from atelier.errors import ConfigError
from atelier.orchestration.catalogue import Parameter, nearest

_JSON_VALUE = re.compile(r"(?<!\S)(\w+=)(?=[{\[])")
"""A word whose value begins as JSON's object or list does."""
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def split(text: str) -> list[str]:
    """Splits ``'a=1 b="two words" c={"min": 2}'`` into words, quotes as in a shell, nothing expanded or executed.

    A value that is JSON's object or list is taken as it stands, with its quotes.

    Raises:
        ConfigError: a quote is not closed.
    """
    words, begin = list[str](), 0
    try:
        for match in _JSON_VALUE.finditer(text):
            end = _end_of_json(text, match.end()) if match.start() >= begin else 0
            if end and (end == len(text) or text[end].isspace()) and _closed(text[begin : match.start()]):
                words += [*shlex.split(text[begin : match.start()]), match[1] + text[match.end() : end]]
                begin = end
        return words + shlex.split(text[begin:])
    except ValueError as error:
        raise ConfigError(
            f"SET={text!r} cannot be read: {error}", "close every quote: SET='name=\"two words\"'"
        ) from error


def _end_of_json(text: str, begin: int) -> int:
    """Where the JSON value ends that begins there; 0: there is none."""
    try:
        return json.JSONDecoder().raw_decode(text, begin)[1]
    except (ValueError, RecursionError):
        return 0


def _closed(text: str) -> bool:
    """Whether every quote in it is closed, so that what follows is in none."""
    try:
        shlex.split(text)
    except ValueError:
        return False
    return True


def parse(words: Iterable[str]) -> dict[str, str]:
    """``["a=1", …]`` as a dict.

    Raises:
        ConfigError: a word has no "=", or a name is given twice.
    """
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"{word!r} is no parameter: it has no name=value", "e.g. SET='train_steps=500 seed=1'")
        if name in given:
            raise ConfigError(f"the parameter {name} is given twice", "leave one")
        given[name] = value
    return given


def validate(given: Mapping[str, str], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Every given value in its parameter's type; nothing that was not given.

    Raises:
        ConfigError: an unknown name (with the nearest ones), a value of a wrong type or of no choice, a missing one.
    """
    for name in given:
        if name not in known:
            raise ConfigError(
                f"the pipeline has no parameter {name!r}{nearest(name, list(known))}",
                "`make list` shows all parameters with their defaults",
            )
    missing = [name for name, parameter in known.items() if parameter.default is None and name not in given]
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}", f"SET='{missing[0]}=…'")
    return {name: _cast(value, known[name]) for name, value in given.items()}


def check_literal(name: str, value: Any) -> None:
    """Refuses a value that would be another one by the time a pod on a cluster has it.

    Quotes, newlines and backslashes pass: values travel as JSON. ``$(NAME)`` and ``$$`` do not: they end up among a
    container's arguments, where Kubernetes replaces them.

    Raises:
        ConfigError: Kubernetes would replace a part of it.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    for mark in ("$(", "$$"):
        if mark in text:
            raise ConfigError(
                f"the value of {name} holds {mark!r}, which Kubernetes replaces in a container's arguments",
                "leave that out",
            )
    control = next((character for character in text if ord(character) < 32 and character not in "\n\t\r"), None)
    if control is not None:
        raise ConfigError(f"the value of {name} holds the control character {control!r}", "leave that out")


def _cast(text: str, parameter: Parameter) -> Any:
    name, kind = parameter.name, parameter.type
    if "{{" in text or "\0" in text:
        # KFP and Argo would replace {{…}} in values by their own.
        raise ConfigError(f"the value of {name} holds {'{{' if '{{' in text else 'a NUL byte'}", "leave that out")
    if parameter.choices and text not in parameter.choices:
        raise ConfigError(
            f"{name}={text!r} is none of its choices{nearest(text, list(parameter.choices))}",
            f"one of: {', '.join(parameter.choices)}",
        )
    if kind == "str":
        return text
    try:
        if kind == "int":
            value: Any = int(text.replace("_", ""))
        elif kind == "float":
            value = float(text)
            if not math.isfinite(value):
                raise ValueError
        elif kind == "bool":
            value = _boolean(text)
        else:
            value = json.loads(text)
            if not isinstance(value, list if kind == "list" else dict):
                raise ValueError
    except ValueError:
        what = {
            "int": "whole number",
            "float": "finite number",
            "bool": "truth value (true or false)",
            "list": "JSON list",
            "dict": "JSON object",
        }[kind]
        raise ConfigError(
            f"{name}={text!r} is no {what}", f"e.g. SET='{name}={json.dumps(parameter.default)}'"
        ) from None
    return value


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)
