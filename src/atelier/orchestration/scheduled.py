"""A pipeline that looks before it runs: the same one, as one task behind a small step that may end it.

A wrapper and not a branch inside each pipeline: a DAG whose every task lies in a branch would be checked before no run,
and a run by hand would start one more pod to ask a question that nobody had.
"""

import inspect
from typing import Any

from atelier.errors import ConfigError
from atelier.orchestration.catalogue import Pipeline
from atelier.orchestration.project import enter

SUFFIX = "-scheduled"
#: Parameters of the wrapper alone, with their defaults.
OWN: dict[str, tuple[type, Any, str]] = {
    "only_if_new": (bool, True, "End at once where the champion was trained on these very data."),
    "cron": (
        str,
        "",
        "The schedule, minute hour day month weekday; for a clock that runs more often. Empty is always.",
    ),
    "timezone": (str, "UTC", "The time zone of cron."),
    "scheduled_at": (str, "", "When the run was due, in UTC; Kubeflow writes it."),
}
_DATA = ("tars", "latents", "pictures", "captions", "boxes", "images", "seed")


def wrap(pipeline: Pipeline, project: Any) -> Pipeline:
    """The pipeline behind a look at its data. It has the pipeline's parameters and ``OWN``.

    Raises:
        ConfigError: a pipeline that registers no model has no champion to compare with.
    """
    known = pipeline.parameters
    if "model_name" not in known:
        raise ConfigError(
            f"{pipeline.name} registers no model, so there is no champion to compare its data with",
            "schedule a pipeline that has the parameter model_name",
        )
    enter(project)
    from kfp import dsl

    from components.look import look

    inner = pipeline.graph
    given = list(inspect.signature(inner.pipeline_func).parameters.values())
    names = [each.name for each in given] + list(OWN)

    def scheduled(*values: Any) -> None:
        arguments = dict(zip(names, values, strict=True))
        asked = {name: arguments[name] for name in (*_DATA, *OWN) if name in arguments}
        seen = look(name=arguments["model_name"], **asked)
        with dsl.If(seen.outputs["Output"] == "go", "new-data"):
            inner(**{each.name: arguments[each.name] for each in given})

    own = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
        for name, (kind, default, _) in OWN.items()
    ]
    scheduled.__signature__ = inspect.Signature([*given, *own])  # type: ignore[attr-defined]
    described = [(name, parameter.description) for name, parameter in known.items()]
    described += [(name, text) for name, (_, _, text) in OWN.items()]
    lines = "\n".join(f"    {name}: {text}" for name, text in described)
    scheduled.__doc__ = f"Looks at the data, then runs.\n\nArgs:\n{lines}\n"
    graph = dsl.pipeline(
        name=inner.component_spec.name + SUFFIX, description=f"On new data alone: {pipeline.description}"
    )(scheduled)
    return Pipeline(pipeline.name, graph, pipeline.choices, pipeline.settle)
