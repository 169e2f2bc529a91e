"""Pipelines to Kubeflow's YAML: the same bytes at every run, no secret and no path of this machine in them."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import yaml

from atelier.orchestration import catalogue
from atelier.orchestration.catalogue import Pipeline


def compile_pipeline(pipeline: Pipeline, path: Path) -> None:
    """Writes one pipeline's YAML.

    The 2.17 SDK refuses ``Literal`` annotations, while its IR and the server know them (``literals``, shown as a
    select box): they are put in here, from the pipeline's ``CHOICES``.
    """
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        raw = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline.graph, str(raw))
        text = raw.read_text(encoding="utf-8")
    # The comment lines on top are for readers; the documents below them are the pipeline.
    head = "".join(line + "\n" for line in text.split("\n") if line.startswith("#"))
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    inputs = documents[0]["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, choices in pipeline.choices.items():
        inputs[name]["literals"] = list(choices)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(head + yaml.safe_dump_all(documents, sort_keys=True, width=120), encoding="utf-8")
    temporary.replace(path)


def compile_all(project: Path, only: str | None = None) -> list[Path]:
    """Writes ``build/pipelines/<name>.yaml`` for every pipeline (or one) and returns the paths."""
    written = []
    for name in [only] if only else catalogue.names(project):
        path = project / "build" / "pipelines" / f"{name}.yaml"
        compile_pipeline(catalogue.load(project, name), path)
        written.append(path)
    return written
