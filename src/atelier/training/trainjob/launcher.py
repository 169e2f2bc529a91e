"""``TrainJobLauncher``: the ranks of a training as a Kubeflow TrainJob, tried again by the cause of its end."""

import contextlib
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from atelier import errors
from atelier.errors import ConfigError, Preempted
from atelier.training.process import log_path
from atelier.training.trainjob import names, preflight
from atelier.training.trainjob.api import Api, Conflict, Object, labelled
from atelier.training.trainjob.causes import CAUSES, RAISED
from atelier.training.trainjob.evidence import Verdict, condition
from atelier.training.trainjob.heartbeat import Heartbeat
from atelier.training.trainjob.manifest import Identity, train_job
from atelier.training.trainjob.owner import Owner, find_owner, was_ended
from atelier.training.trainjob.watch import End, Watch
from atelier.training.trainjob_settings import TrainJobSettings

LEFTOVER_S = 150.0
"""Somewhat more than a pod has to save and end."""
_BACKOFF_S = {"nccl": 15.0, "node_lost": 5.0, "unknown": 30.0}


class TrainJobLauncher:
    """A ``Launcher`` whose nodes are pods.

    The TrainJob is named by run and training, so a launcher that comes back finds it: running ones are watched on,
    ended ones count against their cause's budget. A later try is a TrainJob of its own, which goes on from the newest
    checkpoint.

    Args:
        key: the training's (the step's cache key).
        title: readable, for the TrainJob's name.
        logs_uri: where the nodes leave their logs; "": nowhere.
        beat: leaves a sign of life for the nodes; called every minute.
        complete: whether the training's result is there already; asked before a TrainJob is made. None: it is when a
            TrainJob of it is complete.
        api: the cluster; None: the one that this process runs in.
        poll_s: between two looks at it.
    """

    def __init__(
        self,
        settings: TrainJobSettings,
        key: str,
        title: str = "",
        logs_uri: str = "",
        complete: Callable[[], bool] | None = None,
        beat: Callable[[], None] | None = None,
        api: Api | None = None,
        poll_s: float = 3.0,
    ) -> None:
        self.settings, self.key, self.title = settings, key, title
        self.logs_uri, self.complete, self.beat, self.poll_s = logs_uri, complete, beat, poll_s
        self.facts: dict[str, Any] = {}
        self._api = api
        self._log: Path | None = None
        self._seconds: dict[str, float] = {}
        self._spent: Counter[str] = Counter()

    def run(self, module: str, arguments: list[str], processes: int, logs: Path, nodes: int = 1) -> None:
        """As ``Launcher.run`` says; besides:

        Raises:
            ConfigError, ServiceError: the cluster does not take the TrainJob, or its nodes cannot start.
            OutOfMemory, CollectiveFailed, NodeLost, …: by the cause whose budget is spent (see ``causes.RAISED``).
        """
        settings = self.settings
        if (processes, nodes) != (settings.processes, settings.nodes):
            raise ConfigError(
                f"{processes} processes on {nodes} nodes do not fit the profile's {settings.nodes} nodes of "
                f"{settings.processes_per_node}",
                "leave processes and nodes to the profile",
            )
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        self._log = log_path(logs, 0)
        with _Signals() as signals, Heartbeat(self.beat):
            api = self._api = self._api or Api.connect(settings.namespace)
            owner = find_owner(api)
            identity = Identity(owner.run, self.key, self.title, owner.reference)
            try:
                self._run(api, identity, owner, signals, module, arguments)
            finally:
                self.facts = {
                    "gpu_hours": round(sum(self._seconds.values()) * settings.gpus_per_node / 3600, 4),
                    "node_hours": round(sum(self._seconds.values()) / 3600, 4),
                    "attempts": len(self._seconds),
                }

    def _run(
        self, api: Api, identity: Identity, owner: Owner, signals: "_Signals", module: str, arguments: list[str]
    ) -> None:
        preflight.check(api, self.settings)
        earlier = self._of_this_run(api, identity)
        if identity.run:
            self._count(earlier)
        number = max((attempt_of(job) for job in earlier), default=0)
        current = next((job for job in reversed(earlier) if not judged(job)), None)
        if current is not None:
            self._say(current["metadata"]["name"], "is there already: watching it on")
        while True:
            if current is None:
                if self._is_complete(api, identity):
                    return
                self._let_others_finish(api, identity, signals)
                if self._is_complete(api, identity):
                    return
                number += 1
                current = self._create(api, identity, number, module, arguments)
                if self._yielded(api, identity, current):
                    current, number = None, number - 1
                    continue
            name = current["metadata"]["name"]
            end = Watch(api, name, self._show, signals.wait, self.settings.pending_s, self.poll_s).follow()
            self._seconds[name] = end.seconds
            current = None
            if end.outcome == "interrupted":
                self._interrupted(api, owner, name)
            if self._conclude(api, name, end):
                return
            assert end.verdict is not None
            if signals.wait(_BACKOFF_S.get(end.verdict.cause, 1.0) if self.poll_s >= 1 else 0.0):
                raise Preempted("the launcher was asked to end between two tries", "run again: it goes on")

    def _of_this_run(self, api: Api, identity: Identity) -> list[Object]:
        """The TrainJobs that this run has made for this training, oldest first."""
        found = api.jobs(labelled(identity.labels))
        ours = [job for job in found if identity.run or names.RUN not in job["metadata"].get("labels", {})]
        return sorted(ours, key=attempt_of)

    def _count(self, earlier: list[Object]) -> None:
        """Takes the TrainJobs of this run that a launcher has judged into the books.

        Raises:
            AtelierError: they have spent a budget; this run makes no more.
        """
        for job in earlier:
            notes, name = job["metadata"].get("annotations", {}), job["metadata"]["name"]
            with contextlib.suppress(ValueError):
                self._seconds[name] = float(notes.get(names.NODE_SECONDS, "0"))
            cause = notes.get(names.CAUSE)
            if cause not in CAUSES:
                continue
            self._spent[cause] += 1
            if names.FINAL in notes or self._spent[cause] > getattr(self.settings.retries, cause):
                raise RAISED[cause](
                    f"this run's TrainJob {name} ended as {cause}, and no further try is allowed for that",
                    "mend the cause and start a new run: it goes on from the last checkpoint",
                )

    def _is_complete(self, api: Api, identity: Identity) -> bool:
        if self.complete is not None:
            return self.complete()
        return any(condition(job, "Complete") for job in self._of_this_run(api, identity))

    def _create(self, api: Api, identity: Identity, number: int, module: str, arguments: list[str]) -> Object:
        job = train_job(identity, number, self.settings, module, arguments, self.logs_uri)
        try:
            made = api.create_job(job)
        except Conflict:
            # A launcher that was given up for lost and this one: the name lets one of them create, both watch.
            there = api.job(job["metadata"]["name"])
            if there is not None and "deletionTimestamp" not in there["metadata"]:
                return there
            # A job that is on its way out holds the name.
            time.sleep(min(self.poll_s, 1.0))
            return self._create(api, identity, number, module, arguments)
        self._say(made["metadata"]["name"], f"created in {api.namespace}, {self._size()}")
        return made

    def _size(self) -> str:
        settings = self.settings
        gpus = f" ({settings.gpu_resource})" if settings.gpu_resource else " on CPU"
        return f"{settings.nodes} nodes of {settings.processes_per_node} processes{gpus}"

    def _let_others_finish(self, api: Api, identity: Identity, signals: "_Signals") -> None:
        """Waits for another run that trains the very same thing, whose result is ours, and for what is still saving.

        Two trainings at once would write the same checkpoints. A pod on a node that is lost never ends: the wait for
        pods is bounded by the grace that they have.
        """
        told, since = "", time.monotonic()
        while held_up := self._in_the_way(api, identity, pods=time.monotonic() - since < LEFTOVER_S):
            if held_up != told:
                print(held_up, file=sys.stderr, flush=True)
                told = held_up
            if signals.wait(self.poll_s):
                raise Preempted("the launcher was asked to end while it waited for another training", "run again")

    def _in_the_way(self, api: Api, identity: Identity, pods: bool) -> str:
        """What a new TrainJob has to wait for; "" when there is nothing."""
        if others := self._others(api, identity):
            return f"another run trains the same: waiting for TrainJob {others[0]}"
        if pods:
            for pod in api.find("pods", labels=f"{names.KEY}={names.label_value(self.key)}"):
                if pod.get("status", {}).get("phase") == "Running":
                    return f"waiting for {pod['metadata']['name']} of an earlier try to end"
        return ""

    def _others(self, api: Api, identity: Identity) -> list[str]:
        """Running TrainJobs of other runs with the same key, in the order of their creation."""
        running = [job for job in api.jobs(f"{names.KEY}={names.label_value(self.key)}") if not ended(job)]
        ours = identity.labels.get(names.RUN)
        return [_age(job)[1] for job in sorted(running, key=_age) if job["metadata"]["labels"].get(names.RUN) != ours]

    def _yielded(self, api: Api, identity: Identity, made: Object) -> bool:
        """Two runs that created at the same moment: the younger TrainJob goes."""
        running = [job for job in api.jobs(f"{names.KEY}={names.label_value(self.key)}") if not ended(job)]
        oldest = min(running, key=_age, default=made)
        ours = identity.labels.get(names.RUN)
        if oldest["metadata"]["labels"].get(names.RUN) == ours:
            return False
        api.delete_job(made["metadata"]["name"])
        return True

    def _conclude(self, api: Api, name: str, end: End) -> bool:
        """Writes down how a try ended; True when the training is complete.

        Raises:
            AtelierError: the cause's budget is spent.
        """
        notes = {names.NODE_SECONDS: f"{end.seconds:.1f}"}
        if end.verdict is None:
            api.annotate_job(name, notes)
            self._say(name, "complete")
            return True
        verdict = end.verdict
        notes |= {names.CAUSE: verdict.cause, **({names.FINAL: "true"} if verdict.final else {})}
        api.annotate_job(name, notes)
        self._spent[verdict.cause] += 1
        allowed = getattr(self.settings.retries, verdict.cause)
        spent = self._spent[verdict.cause]
        if verdict.final or spent > allowed:
            raise self._error(name, verdict, allowed)
        self._say(name, f"ended as {verdict.cause} (try {spent} of {allowed + 1} for this cause): {verdict.what}")
        return False

    def _error(self, name: str, verdict: Verdict, allowed: int) -> errors.AtelierError:
        kind = getattr(errors, verdict.error, None)
        if not (isinstance(kind, type) and issubclass(kind, errors.AtelierError)):
            kind = RAISED[verdict.cause]
        tries = f" after {allowed + 1} tries" if allowed else ""
        where = f"; logs of all ranks: {self.logs_uri}" if self.logs_uri else ""
        return kind(
            f"TrainJob {name} ended as {verdict.cause}{tries}: {verdict.what}",
            (verdict.fix or "a new run goes on from the last checkpoint") + where,
        )

    def _interrupted(self, api: Api, owner: Owner, name: str) -> None:
        """This process was signalled: by a person, by the run's end, or because its pod moves."""
        if owner.workflow and not was_ended(api, owner):
            raise Preempted(
                f"this launcher is being moved; TrainJob {name} runs on", "the step's next try finds it by its name"
            )
        api.delete_job(name)
        why = "the run was ended" if owner.workflow else "asked to end"
        self._say(name, f"{why}: deleted; its ranks save before they go")
        raise Preempted(f"{why}; TrainJob {name} was deleted", "run again: it goes on from the last checkpoint")

    def _show(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        assert self._log is not None
        with self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _say(self, name: str, what: str) -> None:
        print(f"TrainJob {name}: {what}", file=sys.stderr, flush=True)


def ended(job: Object) -> bool:
    """Whether a TrainJob is complete, failed or on its way out."""
    return bool(condition(job, "Complete") or condition(job, "Failed") or "deletionTimestamp" in job["metadata"])


def judged(job: Object) -> bool:
    """Whether a launcher has seen its end, or somebody deleted it."""
    return names.NODE_SECONDS in job["metadata"].get("annotations", {}) or "deletionTimestamp" in job["metadata"]


def attempt_of(job: Object) -> int:
    """Which try a TrainJob is."""
    with contextlib.suppress(ValueError):
        return int(job["metadata"].get("labels", {}).get(names.ATTEMPT, "0"))
    return 0


def _age(job: Object) -> tuple[str, str]:
    return str(job["metadata"]["creationTimestamp"]), str(job["metadata"]["name"])


class _Signals:
    """Takes note of SIGTERM and SIGINT; outside the main thread, where Python has none, does nothing."""

    def __init__(self) -> None:
        self._received = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Waits; True as soon as there was a signal."""
        return self._received.wait(seconds)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.set()
