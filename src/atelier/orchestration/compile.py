"""Pipelines to Kubeflow's YAML: the same bytes at every run, no secret and no path of this machine in them."""

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atelier.errors import ConfigError
from atelier.orchestration import catalogue, pods
from atelier.orchestration.catalogue import Pipeline
from atelier.orchestration.profile import Profile
from atelier.storage.atomic import write_bytes
from atelier.storage.digest import sha256_json


@dataclass(frozen=True)
class Compiled:
    """A pipeline as Kubeflow takes it.

    Attributes:
        name: as the pipeline calls itself (``igligen-xl-512``).
        text: the YAML: a head of comments, the pipeline, the platform's part.
        digest: sha256 (hex) of the two documents' content.
        targets: the images (ops, train …) that its steps run in.
    """

    name: str
    text: str
    digest: str
    targets: frozenset[str]


def compile_pipeline(pipeline: Pipeline, profile: Profile, references: Mapping[str, str] | None = None) -> Compiled:
    """Compiles one pipeline for one profile.

    The 2.17 SDK refuses ``Literal`` annotations, while its IR and the server know them (``literals``, shown as a
    select box): they are put in here, from the pipeline's ``CHOICES``.

    Args:
        references: image references by target, in the place of the profile's.

    Raises:
        ConfigError: the pipeline does not know the profile's recipe profile.
    """
    from google.protobuf import json_format
    from kfp.compiler import pipeline_spec_builder
    from kfp.pipeline_spec import pipeline_spec_pb2 as ir

    spec, platforms = ir.PipelineSpec(), ir.PlatformSpec()
    spec.CopyFrom(pipeline.graph.pipeline_spec)
    platforms.CopyFrom(pipeline.graph.platform_spec)
    targets = pods.targets(spec)
    pods.apply(spec, platforms, profile, references)
    inputs = spec.root.input_definitions.parameters
    for name, value in defaults(pipeline, profile).items():
        inputs[name].default_value.string_value = value
    for name, choices in pipeline.choices.items():
        for choice in choices:
            inputs[name].literals.add().string_value = choice
    document = json_format.MessageToDict(spec)
    with contextlib.redirect_stdout(io.StringIO()):
        head = pipeline_spec_builder.extract_comments_from_pipeline_spec(document, pipeline.graph.description)
    documents: list[dict[str, Any]] = [document, json_format.MessageToDict(platforms)]
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    body = yaml.dump_all(documents, Dumper=dumper, sort_keys=True, width=120, allow_unicode=False)
    return Compiled(spec.pipeline_info.name, head + body, sha256_json({"ir": documents}), frozenset(targets))


def defaults(pipeline: Pipeline, profile: Profile) -> dict[str, str]:
    """Defaults of parameters that the profile decides.

    Raises:
        ConfigError: the pipeline does not know the profile's recipe profile.
    """
    values: dict[str, str] = {}
    if "profile" in pipeline.parameters:
        known = pipeline.choices.get("profile", (profile.recipe_profile,))
        if profile.recipe_profile not in known:
            raise ConfigError(
                f"{pipeline.name} has no recipe profile {profile.recipe_profile!r}, which {profile.name} asks for",
                f"one of: {', '.join(known)}",
            )
        values["profile"] = profile.recipe_profile
    if "artifacts" in pipeline.parameters and profile.artifacts:
        values["artifacts"] = profile.artifacts
    return values


def version_name(compiled: Compiled, profile: Profile) -> str:
    """The name of a pipeline's version on the server: equal for equal content."""
    return f"{slug(f'{compiled.name}-{profile.name}', 50)}-{compiled.digest[:12]}"


def slug(text: str, limit: int = 63) -> str:
    """A text as a Kubernetes name: lower case letters, digits and hyphens, at most ``limit`` characters."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].rstrip("-") or "x"


def compile_all(project: Path, profile: Profile, only: str | None = None) -> list[Path]:
    """Writes ``build/pipelines/<name>.yaml`` for every pipeline (or one) and returns the paths."""
    written = []
    for name in [only] if only else catalogue.names(project):
        path = project / "build" / "pipelines" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, compile_pipeline(catalogue.load(project, name), profile).text.encode())
        written.append(path)
    return written
