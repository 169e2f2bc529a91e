"""Runs a pipeline here, under ``kfp.local``'s subprocess runner, with a ledger that kfp.local does not keep."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from atelier.errors import AtelierError, ConfigError
from atelier.orchestration import catalogue, follower, ledger, params, preflight, step_checks, walk
from atelier.orchestration.ledger import Run
from atelier.steps.process import environment, kill_children
from atelier.storage.uri import is_local, local_path


def run(
    project: Path,
    pipeline: str,
    given: dict[str, str],
    profile: str = "",
    artifacts: str = "",
    out: TextIO = sys.stdout,
    only_if_new: bool = False,
) -> int:
    """Runs a pipeline from start to end and prints what happens.

    Args:
        project: the project's root.
        pipeline: the pipeline's name.
        given: parameters as text.
        profile: the profile, "" for the pipeline's default.
        artifacts: URI of the outputs' folder, "" for ``.atelier/artifacts`` in the project.
        out: where to print.
        only_if_new: look at the data first and end where the champion was trained on them, as a schedule does.

    Returns:
        The exit code: 0 done, 1 a step failed, 130 interrupted.

    Raises:
        AtelierError: something is wrong with what was asked for; nothing was started.
    """
    dag = catalogue.load(project, pipeline)
    given = dict(given)
    for name, value in (("profile", profile), ("artifacts", artifacts)):
        if value and given.setdefault(name, value) != value:
            raise ConfigError(f"{name} is given twice: {value!r} and {given[name]!r}", "leave one")
    arguments = params.validate(given, dag.parameters)
    if "artifacts" in dag.parameters:
        arguments["artifacts"] = absolute(str(arguments.get("artifacts") or project / ".atelier" / "artifacts"))
    profile = str(
        arguments.get("profile") or (dag.parameters["profile"].default if "profile" in dag.parameters else "")
    )

    from atelier.tracking import runs as tracking

    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.default_uri(project)
    preflight.check_device(profile)
    step_checks.check_steps(dag, arguments)
    preflight.check(project, str(arguments.get("artifacts", project / ".atelier")), tracking_uri)
    if dag.settle is not None:
        with environment(MLFLOW_TRACKING_URI=tracking_uri):
            settled = dag.settle(dag.defaults() | arguments)
        arguments |= settled
        out.writelines(f"{name}={value}\n" for name, value in settled.items())
    if only_if_new:
        from atelier.orchestration.scheduled import wrap

        dag = wrap(dag, project)

    this = ledger.create(
        project,
        pipeline,
        profile,
        {
            "parameters": {key: value for key, value in arguments.items() if key != "artifacts"},
            "artifacts": arguments.get("artifacts", ""),
            "given": given,
            "tracking_uri": tracking_uri,
        },
    )
    out.write(f"{pipeline} · {profile} · run {this.id}\nartifacts {arguments.get('artifacts', '')}\n")
    out.flush()
    variables = {
        "ATELIER_PROJECT": str(project),
        "ATELIER_RUN_DIR": str(this.folder),
        "ATELIER_RUN_ID": this.id,
        "ATELIER_CLI_PID": str(os.getpid()),
        "MLFLOW_TRACKING_URI": tracking_uri,
        "PYTHONUNBUFFERED": "1",
        # Idle OpenMP threads sleep instead of spinning: beside other work on the same cores that is ten times faster.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        # torchrun and the other tools of this environment, also where it was not activated
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    status, error, parent = "failed", "", ""
    shown = follower.Follower(this, walk.count(dag, arguments), out)
    stop = _Stop(this, shown)
    try:
        with environment(**variables), stop.installed():
            parent = tracking.parent_run(this.id, pipeline, {"profile": profile, **arguments})
            with environment(MLFLOW_RUN_ID=parent or None):
                shown.start()
                try:
                    _execute(dag, arguments, this)
                    status = "succeeded"
                finally:
                    shown.end()
                    _fetch_report(this)
    except Exception as failure:
        # KFP raises bare RuntimeErrors; what went wrong stands in the step's record.
        error = f"{type(failure).__name__}: {failure}"
        with this.kfp_log.open("a", encoding="utf-8") as log:
            log.write(f"\n{error}\n")
    if stop.asked and status != "succeeded":
        status = "interrupted"
    summary = ledger.close(this, status, error, parent)
    with contextlib.suppress(AtelierError), environment(MLFLOW_TRACKING_URI=tracking_uri):
        tracking.end_parent(
            parent,
            {"succeeded": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED"),
            {name: float(value) for name, value in summary["metrics"].items() if isinstance(value, int | float)},
        )
    out.write(_ending(this, summary) + "\n")
    out.flush()
    return {"succeeded": 0, "interrupted": 130}.get(status, 1)


def absolute(uri: str) -> str:
    """A local folder as an absolute path (steps run elsewhere); other URIs as they are."""
    return str(local_path(uri).expanduser().absolute()) if is_local(uri) else uri.rstrip("/")


def _execute(dag: catalogue.Pipeline, arguments: dict[str, Any], this: Run) -> None:
    """Runs the DAG; all that KFP and it alone has to say goes into kfp.log.

    Raises:
        RuntimeError: a step failed (KFP's own error).
    """
    from kfp import local
    from kfp.local import subprocess_task_handler
    from kfp.local.orchestrator import task_executor

    _keep_values(subprocess_task_handler)
    _stop_at_once(task_executor)
    scratch = tempfile.mkdtemp(prefix="atelier-")
    try:
        with this.kfp_log.open("w", encoding="utf-8", buffering=1) as log, contextlib.redirect_stdout(log):
            local.init(
                runner=local.SubprocessRunner(use_venv=False),
                pipeline_root=str(this.folder / "kfp"),
                raise_on_error=True,
            )
            # KFP's commands leave a folder each in TMPDIR.
            with environment(TMPDIR=scratch):
                dag.graph(**arguments)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep_values(handler: Any) -> None:
    """Mends kfp.local 2.17, which replaces "python3" by the interpreter's path in every word of a step's command.

    Parameter values are among those words: ``s3://bucket/python3/…`` would become another URI. Only the command's
    script (third word) names the interpreter.
    """

    def replace(full_command: list[str], new_executable: str) -> list[str]:
        return [
            word.replace("python3", new_executable) if place == 2 else word for place, word in enumerate(full_command)
        ]

    handler.replace_python_executable = replace


def _stop_at_once(executor: Any) -> None:
    """Mends kfp.local 2.17, which after a failed or interrupted step of a DAG with branches starts those that do not
    depend on it. In a DAG without branches it ends at once; so it does here."""
    original = getattr(executor.execute_single_task, "original", executor.execute_single_task)

    def execute_single_task(*args: Any, **kwargs: Any) -> Any:
        outputs, status = original(*args, **kwargs)
        if status.name == "FAILURE":
            raise RuntimeError(f"the step {kwargs.get('task_name', '')} failed")
        return outputs, status

    execute_single_task.original = original  # type: ignore[attr-defined]
    executor.execute_single_task = execute_single_task


class _Stop:
    """Ctrl-C and SIGTERM: the running step is asked once to end and save; a second time it is killed."""

    def __init__(self, this: Run, shown: follower.Follower) -> None:
        self.this, self.shown, self.asked = this, shown, 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        if self.asked > 1:
            kill_children()
            return
        if number != signal.SIGHUP:
            self.shown.say("ending the step cleanly (again to kill it) …")
        running = [record["pid"] for record in self.this.steps() if record["status"] == "running"]
        if running:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
        else:
            # Between two steps, or before the step has opened its line: nothing to save.
            kill_children()
            raise RuntimeError("interrupted")


def _fetch_report(this: Run) -> None:
    """Copies the page of the step ``report`` to the run's folder, also when the step was cached."""
    for record in this.steps():
        output = record.get("output") or {}
        if record["name"] == "report" and output:
            from atelier.storage.inputs import InputFolder
            from atelier.storage.manifest import Manifest

            page = InputFolder(Manifest.load(output["uri"])).fetch("report.html")
            shutil.copyfile(page, this.report)


def _ending(this: Run, summary: dict[str, Any]) -> str:
    lines: list[str] = []
    lines += [
        f"{record['name']}: {record['output']['metadata']['why']}"
        for record in this.steps()
        if (record.get("output") or {}).get("kind") == "verdict"
    ]
    if summary["status"] == "succeeded":
        cached = sum(step["cached"] for step in summary["steps"])
        lines.append(f"done in {summary['seconds']:.1f} s, {cached} of {len(summary['steps'])} steps cached")
        width = max((len(name) for name in summary["metrics"]), default=0)
        lines += [
            f"  {name:<{width}}  {value:.4g}" if isinstance(value, float) else f"  {name:<{width}}  {value}"
            for name, value in summary["metrics"].items()
        ]
        if this.report.exists():
            lines.append(f"report {this.report}")
    elif summary["status"] == "interrupted":
        lines.append(f"interrupted after {summary['seconds']:.1f} s; the next `make run` goes on from here")
    else:
        lines.append(follower.failure(this, "`make run` again goes on from here; finished steps are cached"))
    return "\n".join(lines)


def resumable(this: Run) -> tuple[str, dict[str, str]]:
    """A run's pipeline and the parameters it was given, to run it again.

    Raises:
        ConfigError: the run's run.json is damaged.
    """
    facts = this.facts()
    if "pipeline" not in facts or not isinstance(facts.get("given"), dict):
        raise ConfigError(f"{this.folder / 'run.json'} is damaged", "start the run anew with `make run`")
    return facts["pipeline"], facts["given"]


def age(seconds: float) -> str:
    """``12 min ago`` and the like."""
    past = max(0.0, time.time() - seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if past >= size:
            return f"{past / size:.0f} {unit} ago"
    return "just now"
