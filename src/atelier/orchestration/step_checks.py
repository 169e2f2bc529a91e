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

STEPS = "atelier.steps"


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
        given = {name: value for name, value in {**parameters, "here": here}.items() if name in asked}
        unknown = [name for name, p in asked.items() if p.default is inspect.Parameter.empty and name not in given]
        if unknown:
            continue  # they come out of an earlier step
        try:
            check(**given)
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

    Parameters that another task makes are left out, and so are tasks in branches, which may never run.
    """
    values = {name: parameter.default for name, parameter in dag.parameters.items()} | arguments
    spec = dag.graph.pipeline_spec
    executors = spec.deployment_spec["executors"]
    for name, task in sorted(spec.root.dag.tasks.items()):
        component = spec.components[task.component_ref.name]
        if component.WhichOneof("implementation") != "executor_label":
            continue
        args = list(executors[component.executor_label]["container"]["args"])
        function = str(args[args.index("--function_to_execute") + 1])
        parameters = {
            key: _value(given.default_value, given.parameter_type)
            for key, given in component.input_definitions.parameters.items()
            if given.HasField("default_value")
        }
        for key, given in task.inputs.parameters.items():
            kind = component.input_definitions.parameters[key].parameter_type
            source = given.WhichOneof("kind")
            if source == "component_input_parameter":
                parameters[key] = values[given.component_input_parameter]
            elif source == "runtime_value" and "{{" not in given.runtime_value.constant.string_value:
                parameters[key] = _value(given.runtime_value.constant, kind)
            else:
                parameters.pop(key, None)
        yield name, function, parameters


def _value(value: Any, kind: int) -> Any:
    """A protobuf value in the parameter's Python type; protobuf knows no whole numbers."""
    from google.protobuf.json_format import MessageToDict
    from kfp.pipeline_spec import pipeline_spec_pb2

    found = MessageToDict(value)
    return int(found) if kind == pipeline_spec_pb2.ParameterType.NUMBER_INTEGER else found
