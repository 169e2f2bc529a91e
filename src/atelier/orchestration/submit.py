"""Submits a pipeline to Kubeflow: all is looked at first, the version is named by its content, there is one run."""

import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from atelier.errors import ConfigError, ServiceError
from atelier.orchestration import (
    catalogue,
    cluster,
    compile,
    connection,
    image_digests,
    params,
    plan,
    pods,
    step_checks,
)
from atelier.orchestration import profile as profiles
from atelier.orchestration.catalogue import Pipeline
from atelier.orchestration.compile import Compiled
from atelier.orchestration.kubeflow import ENDED, Kubeflow
from atelier.orchestration.profile import Profile
from atelier.steps.process import environment
from atelier.storage.uri import is_local
from atelier.training.trainjob_settings import VARIABLE

DEFAULT_EXPERIMENT = "KF_PIPELINES_DEFAULT_EXPERIMENT_NAME"
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
LONGEST_NAME = 100


@dataclass(frozen=True)
class Request:
    """What a person asked for; "" is what the environment or the profile says."""

    pipeline: str
    profile: str = ""
    given: Mapping[str, str] = field(default_factory=dict)
    artifacts: str = ""
    host: str = ""
    namespace: str = ""
    experiment: str = ""
    token_file: str = ""
    image_digests: str = ""
    allow_tags: bool = False
    no_cluster_check: bool = False
    name: str = ""


@dataclass(frozen=True)
class Prepared:
    """A request that nothing is wrong with, as far as could be seen without Kubeflow.

    Attributes:
        parameters: what is given to the run; the rest are the compiled defaults.
    """

    request: Request
    dag: Pipeline
    profile: Profile
    parameters: dict[str, Any]
    namespace: str
    experiment: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Uploaded:
    """A version on the server, ready to run."""

    kubeflow: Kubeflow
    compiled: Compiled
    pipeline: str
    version: str
    version_name: str
    new: bool


def prepare(project: Path, request: Request, dag: Pipeline | None = None) -> Prepared:
    """Looks at everything that needs no server but MLflow.

    Args:
        dag: another pipeline than the one of that name (a wrapper of it); its parameters must be the same.

    Raises:
        AtelierError: what would fail later, in one screen.
    """
    plain = catalogue.load(project, request.pipeline)
    profile = profiles.load(project, request.profile)
    given = dict(request.given)
    if request.artifacts and given.setdefault("artifacts", request.artifacts) != request.artifacts:
        raise ConfigError(f"artifacts is given twice: {request.artifacts!r} and {given['artifacts']!r}", "leave one")
    parameters = params.validate(given, plain.parameters)
    for name, value in parameters.items():
        params.check_literal(name, value)
    effective = plain.defaults() | compile.defaults(plain, profile) | parameters
    if "artifacts" in plain.parameters:
        _check_artifacts(str(effective["artifacts"]), profile)
    # The step `train` reads there on which nodes it will run, as it does in its pod.
    nodes = profile.training.model_dump_json() if profile.training else None
    with environment(**{VARIABLE: nodes}):
        step_checks.check_steps(plain, _on_cluster(profile, effective), here=False)
    settled, notes = _settled(plain, effective)
    stages, reasons = _planned(project, request.pipeline, given | {k: str(v) for k, v in settled.items()}, profile)
    if effective.get("zero_stage") == -1 and stages is not None:
        settled |= {"zero_stage": stages}
        notes += reasons
    namespace = request.namespace or profile.namespace
    if not _NAMESPACE.fullmatch(namespace):
        raise ConfigError(f"{namespace!r} is no Kubernetes namespace", "at most 63 of a-z, 0-9 and -")
    experiment = request.experiment or os.environ.get(DEFAULT_EXPERIMENT, "") or profile.experiment
    for what, text in (("experiment", experiment), ("name", request.name)):
        if len(text) > LONGEST_NAME or any(ord(character) < 32 for character in text):
            raise ConfigError(
                f"{what}={text[:40]!r}… has {len(text)} characters", f"at most {LONGEST_NAME}, in one line"
            )
    return Prepared(request, dag or plain, profile, parameters | settled, namespace, experiment, notes)


def _check_artifacts(uri: str, profile: Profile) -> None:
    if not uri:
        raise ConfigError(
            "no artifacts: there is no place for the outputs",
            "`artifacts:` in the profile, or ARTIFACTS=s3://bucket/prefix",
        )
    if is_local(uri):
        raise ConfigError(f"artifacts={uri}: no pod could reach that", "give a bucket: ARTIFACTS=s3://bucket/prefix")
    scheme, _, rest = uri.partition("://")
    bucket = rest.partition("/")[0]
    if scheme == "s3" and not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"artifacts={uri}: {bucket!r} is no name of a bucket",
            f"put your bucket into the profile {profile.name}, or ARTIFACTS=s3://bucket/prefix",
        )


def _on_cluster(profile: Profile, effective: dict[str, Any]) -> dict[str, Any]:
    """The arguments with as many processes as the profile's training has, where the person gave none."""
    if profile.training is None or effective.get("processes") != 0:
        return effective
    return effective | {"processes": profile.training.processes}


def _settled(dag: Pipeline, effective: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the pipeline decides by the registry, where that can be reached from here."""
    if dag.settle is None:
        return {}, ()
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return {}, (f"not settled here, for want of MLFLOW_TRACKING_URI: {dag.name} goes by its parameters alone",)
    with environment(MLFLOW_TRACKING_URI=uri):
        settled = dag.settle(effective)
    return settled, tuple(f"{name}={value}" for name, value in settled.items())


def _planned(
    project: Path, pipeline: str, given: dict[str, str], profile: Profile
) -> tuple[int | None, tuple[str, ...]]:
    """(the lowest ZeRO stage that fits the profile's GPUs, why), None where the profile names no GPU.

    Raises:
        ConfigError: a training does not fit.
    """
    if not profile.gpu:
        return None, ()
    planned = plan.make(project, pipeline, given, profile, look_at_cache=False)
    planned.refuse()
    return plan.zero_stages(planned), tuple(f"{each.task}: {each.reason}" for each in planned.trainings)


def upload(prepared: Prepared, out: TextIO = sys.stdout) -> Uploaded:
    """Looks at the cluster, pins the images, and has the version on the server.

    Raises:
        AtelierError: the server does not answer, something is missing, an image cannot be pinned.
    """
    request, profile = prepared.request, prepared.profile
    for note in prepared.notes:
        out.write(f"{note}\n")
    where = connection.address(request.host, profile.host, request.token_file)
    server = connection.connect(where, prepared.namespace)
    components = pods.functions(prepared.dag.graph.pipeline_spec)
    if not request.no_cluster_check:
        _look_at_cluster(prepared, components, out)
    digests = image_digests.read_digests(Path(request.image_digests)) if request.image_digests else {}
    targets = pods.targets(prepared.dag.graph.pipeline_spec)
    references = image_digests.pin(profile, targets, digests, request.allow_tags)
    if not request.allow_tags:
        for component in sorted(components):
            image = profile.step(component).image
            if image and not profiles.pinned(image):
                raise ConfigError(f"steps.{component}.image {image!r} is no digest", "name@sha256:…, or --allow-tags")
    compiled = compile.compile_pipeline(prepared.dag, profile, references)
    kubeflow = Kubeflow(server)
    version_name = compile.version_name(compiled, profile)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"{compiled.name}.yaml"
        package.write_text(compiled.text, encoding="utf-8")
        pipeline, version, new = kubeflow.version(compiled.name, version_name, package, prepared.dag.description)
    out.write(f"{compiled.name}: version {version_name} {'uploaded' if new else 'is there already'}\n")
    out.flush()
    return Uploaded(kubeflow, compiled, pipeline, version, version_name, new)


def _look_at_cluster(prepared: Prepared, components: set[str], out: TextIO) -> None:
    findings = cluster.check(prepared.profile, prepared.namespace, components)
    if findings.good:
        out.write(f"checked: {', '.join(findings.good)}\n")
    if findings.unseen:
        out.write(f"could not be checked: {', '.join(findings.unseen)}\n")
    for note in findings.notes:
        out.write(f"note: {note}\n")
    findings.refuse()


def submit(
    project: Path, request: Request, *, again: bool = False, wait: bool = False, out: TextIO = sys.stdout
) -> int:
    """Starts a run, or finds the one that runs already.

    Args:
        again: start one even where the very same is running.
        wait: follow it to its end.

    Returns:
        0 started (with ``wait``: succeeded), 1 failed, 130 stopped.

    Raises:
        AtelierError: something is wrong; nothing was started.
    """
    prepared = prepare(project, request)
    uploaded = upload(prepared, out)
    kubeflow, root = uploaded.kubeflow, prepared.profile.pipeline_root
    experiment = kubeflow.experiment(prepared.experiment)
    run = None if again else kubeflow.running(experiment, uploaded.version, prepared.parameters, root)
    if run is not None:
        out.write("the same version is running with the same parameters; a second one: AGAIN=1\n")
    else:
        name = request.name or f"{uploaded.compiled.name} {prepared.profile.name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
        run = kubeflow.run(
            experiment=experiment,
            name=name,
            pipeline=uploaded.pipeline,
            version=uploaded.version,
            parameters=prepared.parameters,
            root=root,
            account=prepared.profile.service_account,
        )
    out.write(f"run {run.run_id}\n{kubeflow.server.link('run', run.run_id)}\n")
    out.flush()
    return follow(kubeflow, str(run.run_id), out) if wait else 0


#: Seconds between two looks, and for how long an unreachable server is asked again.
EVERY_S, PATIENCE_S = 10.0, 900.0
_CODES = {"SUCCEEDED": 0, "SKIPPED": 0, "CANCELED": 130}


def follow(kubeflow: Kubeflow, run: str, out: TextIO = sys.stdout) -> int:
    """Prints each step's state as it changes, until the run ends. Ctrl-C leaves the run alone.

    Returns:
        0 succeeded, 1 failed, 130 stopped by somebody, or this command interrupted.

    Raises:
        ServiceError: the server was away for too long, or refuses; the run goes on.
    """
    told: dict[str, str] = {}
    silent_since: float | None = None
    stop = f"it goes on; `make stop RUN={run}` ends it"
    try:
        while True:
            try:
                record = kubeflow.get(run)
                silent_since = None
            except ServiceError as error:
                lasting = isinstance(error, connection.Refused) and error.status < 500
                now = time.monotonic()
                silent_since = silent_since or now
                if lasting or now - silent_since > PATIENCE_S:
                    raise ServiceError(f"the run {run} is out of sight: {error.what}", f"{error.fix}; {stop}") from None
                out.write(f"{error.what}; asked again in {EVERY_S:.0f} s\n")
                out.flush()
                time.sleep(EVERY_S)
                continue
            _tell(record, told, out)
            state = str(record.state or "")
            if state in ENDED:
                why = str((record.error and record.error.message) or "")
                out.write(f"{state.lower()}{': ' + ' '.join(why.split())[:500] if why else ''}\n")
                return _CODES.get(state, 1)
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        out.write(f"\nno longer watched; {stop}\n")
        return 130


def _tell(record: Any, told: dict[str, str], out: TextIO) -> None:
    state = str(record.state or "PENDING")
    if told.get("") != state:
        told[""] = state
        out.write(f"{time.strftime('%H:%M:%S')} run {state.lower()}\n")
    for task in (record.run_details and record.run_details.task_details) or ():
        # Drivers and DAG nodes are Kubeflow's own.
        name = str(task.display_name or "")
        now = str(task.state or "")
        if not name or name.endswith("-driver") or name == "executor" or now in ("", told.get(str(task.task_id))):
            continue
        told[str(task.task_id)] = now
        why = str((task.error and task.error.message) or "")
        out.write(
            f"{time.strftime('%H:%M:%S')} {name} {now.lower()}{': ' + ' '.join(why.split())[:300] if why else ''}\n"
        )
    out.flush()


def stop(project: Path, run: str, request: Request, out: TextIO = sys.stdout) -> int:
    """Ends a run on the server.

    Raises:
        ConfigError: no run named. ServiceError: there is no such run, or the server does not answer.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", run):
        raise ConfigError(f"RUN={run!r} is no run's id", "`make submit` prints it: make stop RUN=<id>")
    profile = profiles.load(project, request.profile)
    where = connection.address(request.host, profile.host, request.token_file)
    kubeflow = Kubeflow(connection.connect(where, request.namespace or profile.namespace))
    state = kubeflow.stop(run)
    if state in ENDED:
        out.write(f"the run {run} had ended already: {state.lower()}\n")
    else:
        out.write(f"the run {run} is asked to end; its steps save first\n{kubeflow.server.link('run', run)}\n")
    return 0
