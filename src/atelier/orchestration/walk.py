"""A compiled pipeline's steps in the order in which they run, with what is known of their inputs before any runs."""

import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from atelier.orchestration.catalogue import Pipeline
from atelier.orchestration.pods import deployment_of, function_of

LATER = object()
"""Stands for a value that a step makes."""


@dataclass(frozen=True)
class Output:
    """An output artifact of a step: the task's path and the output's name."""

    task: str
    name: str


@dataclass(frozen=True)
class Call:
    """One step.

    Attributes:
        task: its name in the DAG, behind those of the branches that it lies in (``train-stage-1/train``).
        image: as the component names it.
        function: the component's function, which is the step's name; "" for a container of its own.
        parameters: by name; ``LATER`` for what another step makes.
        artifacts: by name; None where it comes from a branch of which it is not known whether it runs.
        certain: whether every condition around it is known to hold.
        outputs: the names of its output artifacts.
    """

    task: str
    image: str
    function: str
    parameters: dict[str, Any]
    artifacts: dict[str, Output | None]
    certain: bool
    outputs: tuple[str, ...] = field(default=())


def calls(dag: Pipeline, arguments: Mapping[str, Any]) -> Iterator[Call]:
    """The steps that a run may have.

    Args:
        arguments: the pipeline's parameters; the others are at their defaults. They decide which branches are taken: a
            branch whose condition is known not to hold is left out.
    """
    spec = dag.graph.pipeline_spec
    values = {name: parameter.default for name, parameter in dag.parameters.items()} | dict(arguments)
    walker = _Walker(spec)
    yield from walker.dag(spec.root.dag, "", values, {}, certain=True)


def count(dag: Pipeline, arguments: Mapping[str, Any] | None = None) -> int:
    """How many steps a run has at most.

    Args:
        arguments: as for ``calls``; None counts every branch.
    """
    if arguments is None:
        arguments = dict.fromkeys(dag.parameters, LATER)
    return sum(1 for _ in calls(dag, arguments))


class _Walker:
    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.executors = _executors(spec)

    def dag(
        self, dag: Any, prefix: str, values: dict[str, Any], artifacts: dict[str, Output | None], certain: bool
    ) -> Generator[Call, None, dict[str, Output | None]]:
        """The steps of one DAG; returns (as the generator's value) its output artifacts."""
        made: dict[tuple[str, str], Output | None] = {}
        for name in _in_order(dag.tasks):
            task = dag.tasks[name]
            component = self.spec.components[task.component_ref.name]
            parameters = _parameters(task, component, values)
            holds = _holds(task.trigger_policy.condition, parameters)
            if holds is False:
                continue
            inputs = {
                key: (
                    artifacts.get(given.component_input_artifact)
                    if given.WhichOneof("kind") == "component_input_artifact"
                    else made.get(
                        (given.task_output_artifact.producer_task, given.task_output_artifact.output_artifact_key)
                    )
                )
                for key, given in task.inputs.artifacts.items()
            }
            sure = certain and holds is True
            if component.WhichOneof("implementation") == "dag":
                outputs = yield from self.dag(component.dag, f"{prefix}{name}/", parameters, inputs, sure)
                made |= {(name, key): output for key, output in outputs.items()}
                continue
            named = tuple(component.output_definitions.artifacts)
            made |= {(name, key): Output(prefix + name, key) for key in named}
            image, function = self.executors[component.executor_label]
            yield Call(prefix + name, image, function, parameters, inputs, sure, named)
        return {key: _selected(selector, made) for key, selector in dag.outputs.artifacts.items()}


def _selected(output: Any, made: Mapping[tuple[str, str], Output | None]) -> Output | None:
    """Which step's output a DAG hands on: of several, the one whose branch ran."""
    found = {made.get((each.producer_subtask, each.output_artifact_key)) for each in output.artifact_selectors} - {None}
    return found.pop() if len(found) == 1 else None


def _executors(spec: Any) -> dict[str, tuple[str, str]]:
    """Executor label → its image and the function that it runs."""
    return {
        label: (executor.container.image, function_of(executor.container) or "")
        for label, executor in deployment_of(spec).executors.items()
    }


def _in_order(tasks: Mapping[str, Any]) -> Iterator[str]:
    """Every task behind those that it depends on; equals by name."""
    waiting, seen = sorted(tasks), set[str]()
    while waiting:
        for name in waiting:
            if all(before in seen or before not in tasks for before in tasks[name].dependent_tasks):
                break
        else:
            raise AssertionError(f"a circle in the DAG: {waiting}")
        waiting.remove(name)
        seen.add(name)
        yield name


def _parameters(task: Any, component: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    kinds = component.input_definitions.parameters
    found: dict[str, Any] = {
        key: _typed(MessageToDict(given.default_value), given.parameter_type)
        for key, given in kinds.items()
        if given.HasField("default_value")
    }
    for key, given in task.inputs.parameters.items():
        source = given.WhichOneof("kind")
        if source == "component_input_parameter":
            value = values.get(given.component_input_parameter, LATER)
        elif source == "runtime_value" and "{{" not in given.runtime_value.constant.string_value:
            value = MessageToDict(given.runtime_value.constant)
        else:
            value = LATER
        found[key] = _typed(value, kinds[key].parameter_type)
    return found


def _typed(value: Any, kind: int) -> Any:
    """The value as the component's function gets it: protobuf knows no whole numbers."""
    from kfp.pipeline_spec import pipeline_spec_pb2

    if value is LATER or value is None:
        return value
    return int(value) if kind == pipeline_spec_pb2.ParameterType.NUMBER_INTEGER else value


_CONDITION = re.compile(r"inputs\.parameter_values\['(?P<name>[-\w]+)'\] == '(?P<value>[^']*)'")


def _holds(condition: str, parameters: Mapping[str, Any]) -> bool | None:
    """Whether a task of this trigger runs; None where that cannot be known yet.

    KFP writes an ``If`` over a text as ``inputs.parameter_values['…'] == '…'`` and its ``Else`` as ``!(…)``.
    """
    if not condition:
        return True
    negated = condition.startswith("!(") and condition.endswith(")")
    match = _CONDITION.fullmatch(condition[2:-1] if negated else condition)
    value = LATER if match is None else parameters.get(match["name"], LATER)
    if match is None or value is LATER:
        return None
    return (str(value) == match["value"]) != negated
