"""MLflow runs: a parent for the pipeline run, a child for each step, from any number of processes.

Every call names its run; MLflow's global "active run" is never used, since several processes share one run. The shape
and the tag ``mlflow.parentRunId`` are those of KFP's own MLflow plugin (KEP-12862), whose runs are taken over where
a backend injects them.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import AtelierError, Preempted, ServiceError
from atelier.tracking.outbox import Outbox, Record
from atelier.tracking.service import artifact_location, client, default_uri, ping, shown, tracking_uri

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["TrackedRun", "attach", "child_run", "default_uri", "end_parent", "parent_run", "ping", "tracking_uri"]

RUN_ID, ROLE, PARENT = "atelier.run_id", "atelier.role", "mlflow.parentRunId"
CLOSE_S = 15.0
_PARAM_LIMIT, _PARAM_BATCH = 5_500, 100
_SETTLE_S, _SETTLE_SHARE, _SETTLE_MOST_S = 2.0, 4.0, 8.0
"""How long a run that is being made may take to be seen by others: seconds, or times what making one took here, but not
so long that a short step's records are lost (``CLOSE_S``)."""


def parent_run(run_id: str, pipeline: str, params: dict[str, Any]) -> str:
    """The MLflow run of a pipeline run, found by its tag or made, and set to running.

    Args:
        run_id: the pipeline run's own id (tag ``atelier.run_id``).
        pipeline: names the experiment, unless ``MLFLOW_EXPERIMENT_ID`` or ``MLFLOW_EXPERIMENT_NAME`` does.
        params: logged, nested ones with dots.

    Returns:
        MLflow's run id: an injected ``MLFLOW_RUN_ID`` where there is one.

    Raises:
        ServiceError: the store does not answer.
    """
    uri = tracking_uri()
    with _service_errors(uri):
        connected = client(uri)
        injected = os.environ.get("MLFLOW_RUN_ID")
        if injected:
            connected.set_tag(injected, RUN_ID, run_id)
            connected.set_tag(injected, ROLE, "pipeline")
            found = injected
        else:
            experiment = _experiment(connected, uri, pipeline)
            earlier = connected.search_runs(
                [experiment], f"tags.`{RUN_ID}` = '{_quoted(run_id)}' and tags.`{ROLE}` = 'pipeline'", max_results=1
            )
            if earlier:
                found = earlier[0].info.run_id
                connected.update_run(found, status="RUNNING")
            else:
                made = connected.create_run(
                    experiment, run_name=run_id, tags={RUN_ID: run_id, ROLE: "pipeline", "atelier.pipeline": pipeline}
                )
                found = made.info.run_id
        _log_params(connected, found, params)
    return str(found)


def end_parent(mlflow_run_id: str, status: str, metrics: dict[str, float]) -> None:
    """Logs a pipeline run's metrics and ends it.

    Args:
        mlflow_run_id: as ``parent_run`` returned it; "" does nothing.
        status: ``FINISHED``, ``FAILED`` or ``KILLED``.

    Raises:
        ServiceError: the store does not answer.
    """
    if not mlflow_run_id:
        return
    uri = tracking_uri()
    with _service_errors(uri):
        from mlflow.entities import Metric

        connected = client(uri)
        now = int(time.time() * 1000)
        finite = [Metric(name, value, now, 0) for name, value in metrics.items() if math.isfinite(value)]
        if finite:
            connected.log_batch(mlflow_run_id, metrics=finite)
        connected.set_terminated(mlflow_run_id, status=status)


class TrackedRun:
    """Writes to one MLflow run, in the background; no method raises or waits when the server is away.

    Made by ``child_run`` (which ends the run) or ``attach`` (which leaves that to its owner).
    """

    def __init__(self, uri: str, outbox: Outbox, run_id: str | None = None) -> None:
        self.uri = uri
        self._outbox = outbox
        self._run_id = run_id
        self._known = threading.Event()
        if run_id is not None:
            self._known.set()
        # One bound method, so that the outbox can tell the run of neighbouring records by identity.
        self._id = self._current_id

    def run_id(self, timeout_s: float = 20.0) -> str | None:
        """MLflow's run id; None when the server has not given one in time."""
        self._known.wait(timeout_s)
        return self._run_id

    def log_params(self, params: dict[str, Any]) -> None:
        """Logs parameters, nested ones with dots; values longer than MLflow takes are cut."""
        self._send(lambda connected, run: _log_params(connected, run, params))

    def log_metrics(self, metrics: dict[str, Any], step: int = 0) -> None:
        """Logs numbers at a step; what is not a finite number is left out."""
        now = int(time.time() * 1000)
        values = [
            (name, float(value), now, step)
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        if values:
            self._outbox.put(Record(metrics=values, run_id=self._id))

    def log_image(self, image: "Image.Image", key: str, step: int = 0) -> None:
        """Adds a picture to the slider of ``key``."""
        kept = image.copy()
        self._send(lambda connected, run: connected.log_image(run, kept, key=key, step=step))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Stores a small file with the run; weights go to the artifact store, not here."""
        self._send(lambda connected, run: connected.log_artifact(run, str(path), folder))

    def log_text(self, text: str, name: str) -> None:
        """Stores a text with the run."""
        self._send(lambda connected, run: connected.log_text(run, text, name))

    def set_tags(self, tags: dict[str, Any]) -> None:
        """Sets tags."""
        from_here = {name: str(value)[:_PARAM_LIMIT] for name, value in tags.items()}
        self._send(lambda connected, run: [connected.set_tag(run, name, value) for name, value in from_here.items()])

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Waits until all is sent; False when the time is up before."""
        return self._outbox.flush(timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Sends what is left; says so when it cannot."""
        self._outbox.close(timeout_s)

    def _send(self, call: Any) -> None:
        def send(connected: Any) -> None:
            run = self._current_id()
            if run is not None:
                call(connected, run)

        self._outbox.put(Record(send=send))

    def _current_id(self) -> str | None:
        return self._run_id

    def _begin(self, begin: Any) -> None:
        def send(connected: Any) -> None:
            self._run_id = begin(connected)
            self._known.set()

        self._outbox.put(Record(send=send))


def attach(mlflow_run_id: str, uri: str | None = None) -> TrackedRun:
    """Writes to a run that another process began and will end."""
    uri = uri or tracking_uri()
    return TrackedRun(uri, Outbox(uri), mlflow_run_id)


@contextlib.contextmanager
def child_run(
    name: str, params: dict[str, Any] | None = None, tags: dict[str, Any] | None = None, uri: str | None = None
) -> Iterator[TrackedRun]:
    """A step's run below its pipeline's; ends FINISHED, KILLED (asked to end) or FAILED as the block does.

    The parent is ``MLFLOW_RUN_ID``; where that run is not one of ours it is the step's own, made by the backend's
    plugin, and is used itself. Without one (on a cluster, where nobody stands above the steps) it is the run of the
    tag ``atelier.run_id``, made by whichever step comes first, with the state of the step that ended last. An earlier
    run of the same ``atelier.key`` that was killed without a word is ended as KILLED.

    The block runs whatever the server does.
    """
    uri = uri or tracking_uri()
    run = TrackedRun(uri, Outbox(uri))
    shared: list[str] = []
    texts = {tag: str(value) for tag, value in (tags or {}).items()}
    run._begin(lambda connected: _begin_child(connected, uri, name, texts, shared))
    if params:
        run.log_params(params)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (Preempted, KeyboardInterrupt):
        status = "KILLED"
        raise
    except AtelierError as error:
        run.set_tags({"atelier.error": error.what})
        raise
    finally:
        run._send(lambda connected, mlflow_run: _end_child(connected, uri, mlflow_run, texts, shared, status))
        run.close()


def _begin_child(connected: Any, uri: str, name: str, tags: dict[str, str], shared: list[str]) -> str:
    """Makes a step's run. A parent that the steps share is put into ``shared``: they end it."""
    injected = os.environ.get("MLFLOW_RUN_ID")
    if not injected and tags.get(RUN_ID):
        injected = _shared_parent(connected, uri, tags[RUN_ID])
        shared.append(injected)
    if injected:
        parent = connected.get_run(injected)
        if parent.data.tags.get(ROLE) != "pipeline":
            for tag, value in (tags | {ROLE: "step"}).items():
                connected.set_tag(injected, tag, value)
            return injected
        experiment = parent.info.experiment_id
        tags = tags | {PARENT: injected}
    else:
        experiment = _experiment(connected, uri, "atelier")
    if key := tags.get("atelier.key"):
        # The step's lock lets one process at a time work on a key, so a run that still says it runs was killed.
        for left in connected.search_runs(
            [experiment], f"tags.`atelier.key` = '{_quoted(key)}' and attributes.status = 'RUNNING'"
        ):
            connected.set_terminated(left.info.run_id, status="KILLED")
    made = connected.create_run(experiment, run_name=name, tags=tags | {ROLE: "step"})
    return str(made.info.run_id)


def _end_child(connected: Any, uri: str, mlflow_run: str, tags: dict[str, str], shared: list[str], status: str) -> None:
    """Ends a step's run, and with it the parent that the steps share: the one that they agree on by now."""
    connected.set_terminated(mlflow_run, status=status)
    for parent in shared:
        experiment = _experiment(connected, uri, "atelier")
        agreed = _oldest_parent(connected, experiment, tags[RUN_ID]) or parent
        if agreed != parent:
            for child in connected.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'"):
                connected.set_tag(child.info.run_id, PARENT, agreed)
            if connected.get_run(parent).info.lifecycle_stage == "active":
                connected.delete_run(parent)  # nobody would ever end it
        connected.set_terminated(agreed, status=status)


def _shared_parent(connected: Any, uri: str, run_id: str) -> str:
    """The pipeline run's MLflow run, found or made, and set to running; steps that begin at once agree on one.

    On the oldest: which that is can turn out late, since one that was begun before may be written after. So whoever
    makes one waits and looks again, and every step looks again when it ends.
    """
    from mlflow.exceptions import MlflowException

    experiment = _experiment(connected, uri, "atelier")
    known = _oldest_parent(connected, experiment, run_id)
    if known is None:
        began = time.monotonic()
        made = connected.create_run(experiment, run_name=run_id, tags={RUN_ID: run_id, ROLE: "pipeline"}).info.run_id
        time.sleep(min(max(_SETTLE_S, _SETTLE_SHARE * (time.monotonic() - began)), _SETTLE_MOST_S))
        known = _oldest_parent(connected, experiment, run_id) or made
        if known != made:
            connected.delete_run(made)
    try:
        connected.update_run(known, status="RUNNING")
    except MlflowException:
        # Its maker has just found an older one.
        known = _oldest_parent(connected, experiment, run_id)
        if known is None:
            raise
        connected.update_run(known, status="RUNNING")
    return str(known)


def _oldest_parent(connected: Any, experiment: str, run_id: str) -> str | None:
    found = connected.search_runs([experiment], f"tags.`{RUN_ID}` = '{_quoted(run_id)}' and tags.`{ROLE}` = 'pipeline'")
    return min(((run.info.start_time, str(run.info.run_id)) for run in found), default=(0, None))[1]


def _experiment(connected: Any, uri: str, name: str) -> str:
    """The experiment's id, made where it is missing; what the environment names wins."""
    from mlflow.exceptions import MlflowException

    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given:
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    found = connected.get_experiment_by_name(name)
    if found is None:
        try:
            return str(connected.create_experiment(name, artifact_location=artifact_location(uri, name)))
        except MlflowException:
            # Another process was faster.
            found = connected.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        connected.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _log_params(connected: Any, run: str, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    known = connected.get_run(run).data.params
    # MLflow keeps a parameter for good: one that is there already stays (a resumed run has the same).
    fresh = [Param(name, value) for name, value in sorted(_flat(params).items()) if name not in known]
    for first in range(0, len(fresh), _PARAM_BATCH):
        connected.log_batch(run, params=fresh[first : first + _PARAM_BATCH])


def _flat(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)[:_PARAM_LIMIT]
    return flat


def _quoted(value: str) -> str:
    return value.replace("'", "")


@contextlib.contextmanager
def _service_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except AtelierError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ServiceError(
            f"MLflow at {shown(uri)} failed: {first}", "check that it runs, or set MLFLOW_TRACKING_URI"
        ) from error
