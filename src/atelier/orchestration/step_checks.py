"""What the steps refuse by their parameters alone, asked of the steps themselves before the first one starts.

A step's module may have ``check(…)``, which takes some of ``run``'s parameters and raises what ``run`` would raise for
them. The compiled pipeline says which of its parameters reach which step.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any

from atelier.errors import AtelierError
from atelier.orchestration.catalogue import Pipeline
from atelier.orchestration.pods import FUNCTION

STEPS = "atelier.steps"
_LATER = object()
"""Stands for what is not known before the run."""


def check_steps(dag: Pipeline, arguments: dict[str, Any], here: bool = True) -> None:
    """Asks every step of a run.

    Args:
        arguments: the pipeline's parameters; the others are at their defaults.
        here: whether the steps will run on this machine, so that what it cannot do counts too.

    Raises:
        AtelierError: as the step would raise it, with the step's name.
    """
    for task, function, parameters in _calls(dag, arguments):
        check = _check_of(function)
        if check is None:
            continue
        asked = inspect.signature(check).parameters
        known = {**parameters, "here": here}
        if any(known.get(name) is _LATER for name in asked):
            continue
        try:
            check(**{name: value for name, value in known.items() if name in asked})
        except AtelierError as error:
            raise type(error)(f"step {task} would fail: {error.what}", error.fix) from error


def _check_of(function: str) -> Any:
    """``check`` of the step that a component calls: both have one name."""
    module = f"{STEPS}.{function}"
    if importlib.util.find_spec(module) is None:
        return None
    return getattr(importlib.import_module(module), "check", None)


def _calls(dag: Pipeline, arguments: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(task, the component's function, its parameters by name) for each task of the DAG's top level.

    Parameters that another task makes are ``_LATER``. Tasks in branches are left out: they may never run.
    """
    from google.protobuf.json_format import MessageToDict

    values = {name: parameter.default for name, parameter in dag.parameters.items()} | arguments
    spec = dag.graph.pipeline_spec
    executors = spec.deployment_spec["executors"]
    for name, task in sorted(spec.root.dag.tasks.items()):
        component = spec.components[task.component_ref.name]
        if component.WhichOneof("implementation") != "executor_label":
            continue
        args = list(executors[component.executor_label]["container"]["args"])
        if FUNCTION not in args:
            continue  # a container of its own, no function of ours
        parameters: dict[str, Any] = {
            key: _typed(MessageToDict(given.default_value), given.parameter_type)
            for key, given in component.input_definitions.parameters.items()
            if given.HasField("default_value")
        }
        for key, given in task.inputs.parameters.items():
            kind = component.input_definitions.parameters[key].parameter_type
            source = given.WhichOneof("kind")
            if source == "component_input_parameter":
                parameters[key] = _typed(values[given.component_input_parameter], kind)
            elif source == "runtime_value" and "{{" not in given.runtime_value.constant.string_value:
                parameters[key] = _typed(MessageToDict(given.runtime_value.constant), kind)
            else:
                parameters[key] = _LATER
        yield name, str(args[args.index(FUNCTION) + 1]), parameters


def _typed(value: Any, kind: int) -> Any:
    """The value as the component's function gets it: protobuf knows no whole numbers."""
    from kfp.pipeline_spec import pipeline_spec_pb2

    return int(value) if kind == pipeline_spec_pb2.ParameterType.NUMBER_INTEGER else value
