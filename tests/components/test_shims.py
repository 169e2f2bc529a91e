"""Every component hands its step exactly the parameters that the step takes."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "components"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "images"))


@pytest.mark.parametrize("name", NAMES)
def test_shim_and_step_agree(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run"
    ]
    given = {keyword.arg for keyword in call.keywords}
    step = importlib.import_module(f"atelier.steps.{name}").run
    parameters = inspect.signature(step).parameters
    assert given == set(parameters)
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())


@pytest.mark.parametrize("name", NAMES)
def test_component_is_documented_and_light(name: str) -> None:
    component = getattr(importlib.import_module(f"components.{name}"), name)
    spec = component.component_spec
    assert spec.description
    for parameter, definition in (spec.inputs or {}).items():
        if definition.type in ("String", "Integer", "Float", "Double", "Boolean"):
            assert definition.description, f"{name}.{parameter} has no description"
    assert "pip install" not in " ".join(spec.implementation.container.command)
