"""From what the cluster says of a training's pods to the cause of its end."""

import re
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from atelier import errors
from atelier.training.trainjob import names
from atelier.training.trainjob.api import Object
from atelier.training.trainjob.causes import CAUSES, Cause
from atelier.training.trainjob.logs import CONTAINER, seconds_of
from atelier.training.trainjob.report import Report, parse

_DISRUPTED: dict[str, Cause] = {
    # Reasons of the pod, or of its condition DisruptionTarget (kubernetes.io/docs/concepts/workloads/pods/disruptions).
    "Preempting": "preempted",
    "PreemptionByScheduler": "preempted",
    "EvictionByEvictionAPI": "preempted",
    "TerminationByKubelet": "preempted",
    "Shutdown": "preempted",
    "NodeShutdown": "preempted",
    "Terminated": "preempted",
    "DeletionByTaintManager": "node_lost",
    "DeletionByPodGC": "node_lost",
    "NodeLost": "node_lost",
    "NodeAffinity": "node_lost",
    "UnexpectedAdmissionError": "node_lost",
}
_EVENTS: dict[str, Cause] = {
    "Preempted": "preempted",
    "Preempting": "preempted",
    "TaintManagerEviction": "node_lost",
    "NodeNotReady": "node_lost",
    "NodeShutdown": "preempted",
}
_ORDER: tuple[Cause, ...] = (
    "node_lost",
    "preempted",
    "out_of_memory",
    "bad_config",
    "bad_data",
    "unknown",
    "nccl",
)
"""Which cause explains the others, where nodes tell different ones: ranks that lose a peer report the network."""


@dataclass
class PodSeen:
    """A pod as it was seen last; it may be gone from the server since.

    Attributes:
        object: the pod.
        first, last: when it was first and last seen to run (seconds since 1970), 0 before.
        gone: whether the server no longer has it.
    """

    object: Object
    first: float = 0.0
    last: float = 0.0
    gone: bool = False

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def node(self) -> int:
        """Its rank among the nodes."""
        metadata = self.object["metadata"]
        index = {**metadata.get("annotations", {}), **metadata.get("labels", {})}.get(names.INDEX, "0")
        return int(index)

    @property
    def phase(self) -> str:
        return str(self.object.get("status", {}).get("phase", "Pending"))

    @property
    def state(self) -> dict[str, Any]:
        """``waiting``, ``running`` or ``terminated`` of the container that trains."""
        for status in self.object.get("status", {}).get("containerStatuses", []):
            if status["name"] == CONTAINER:
                return dict(status.get("state", {}))
        return {}

    @property
    def seconds(self) -> float:
        """How long its container has run."""
        state = self.state
        if ended := state.get("terminated"):
            return max(seconds_of(ended.get("finishedAt") or "") - seconds_of(ended.get("startedAt") or ""), 0.0)
        began = seconds_of(state.get("running", {}).get("startedAt") or "") or self.first
        return max(self.last - began, 0.0) if began else 0.0


@dataclass
class Pods:
    """Every pod of a TrainJob that was ever seen: those of a failed job are soon deleted."""

    seen: dict[str, PodSeen] = field(default_factory=dict)

    def update(self, found: list[Object]) -> None:
        """Takes note of what the server has now."""
        now, here = time.time(), {pod["metadata"]["uid"] for pod in found}
        for pod in found:
            known = self.seen.setdefault(pod["metadata"]["uid"], PodSeen(pod))
            known.object = pod
            if known.phase == "Running":
                known.first, known.last = known.first or now, now
        for uid, known in self.seen.items():
            known.gone = uid not in here

    @property
    def started(self) -> bool:
        """Whether one has ever run."""
        return any(pod.phase != "Pending" for pod in self.seen.values())

    @property
    def first_node(self) -> PodSeen | None:
        """The newest pod of node 0 that has a log to be read."""
        begun = [pod for pod in self.seen.values() if pod.node == 0 and not pod.gone and pod.state.keys() & _LOGGED]
        return max(begun, key=lambda pod: str(pod.object["metadata"].get("creationTimestamp")), default=None)

    @property
    def seconds(self) -> float:
        """Node-seconds of all."""
        return sum(pod.seconds for pod in self.seen.values())


_LOGGED = {"running", "terminated"}


@dataclass(frozen=True)
class Verdict:
    """Why a TrainJob ended, for a person and for the budgets.

    Attributes:
        what: names the node, what it said and its last lines.
        error: the class of ours that a rank raised, if any.
        final: whether trying again is out of the question.
    """

    cause: Cause
    what: str
    fix: str = ""
    error: str = ""
    final: bool = False


def judge(job: Object, pods: Pods, events: list[Object]) -> Verdict:
    """The cause of a failed TrainJob.

    Args:
        events: of its pods, oldest first.
    """
    failed = condition(job, "Failed") or {}
    said = f"{failed.get('reason', '')}: {failed.get('message', '')}".strip(": ")
    if failed.get("reason") == "DeadlineExceeded":
        return Verdict("unknown", f"the TrainJob's deadline is over ({said})", "raise deadline_s", final=True)
    found = [verdict for pod in pods.seen.values() if (verdict := of_pod(pod)) is not None]
    for event in events:
        if event.get("reason") in _EVENTS:
            where = event["involvedObject"]["name"]
            found.append(Verdict(_EVENTS[event["reason"]], f"{where}: {event['reason']}: {event.get('message', '')}"))
    for cause in _ORDER:
        if cause == "preempted":
            # A node that saved and stopped was asked to; if nothing else went wrong anywhere, that was all of it.
            disrupted = [verdict for verdict in found if verdict.cause == cause and verdict.fix != _SAVED]
        else:
            disrupted = [verdict for verdict in found if verdict.cause == cause]
        if disrupted:
            return disrupted[0]
    if found:
        return found[0]
    gone = [pod for pod in pods.seen.values() if pod.gone and pod.first]
    if gone:
        return Verdict("node_lost", f"{gone[0].name} vanished while it ran ({said})")
    return Verdict("unknown", said or "the TrainJob failed without a word")


_SAVED = "it saved and stopped"


def of_pod(pod: PodSeen) -> Verdict | None:
    """What one pod says; None for one that runs, waits or completed."""
    status, where = pod.object.get("status", {}), f"node {pod.node} ({pod.name})"
    disrupted = condition(pod.object, "DisruptionTarget")
    reason, message = status.get("reason", ""), status.get("message", "")
    if reason == "Evicted":
        return _evicted(where, message)
    if disrupted is not None or reason in _DISRUPTED or reason.startswith("OutOf"):
        named = reason if reason in _DISRUPTED or disrupted is None else disrupted.get("reason", "")
        told = message or (disrupted or {}).get("message", "")
        return Verdict(_DISRUPTED.get(named, "node_lost"), f"{where}: {named or reason}: {told}".rstrip(": "))
    ended = pod.state.get("terminated")
    if ended is None or ended.get("exitCode") == 0:
        return None
    report, code = parse(ended.get("message")), int(ended.get("exitCode", 1))
    if ended.get("reason") == "OOMKilled":
        fix = "give resources_per_node more memory, or fewer loader_workers"
        return Verdict("out_of_memory", f"{where} was killed for memory (OOMKilled)", fix)
    if report is not None:
        return _told(where, report)
    deleted = "deletionTimestamp" in pod.object["metadata"]
    if code == 128 + signal.SIGKILL and not deleted:
        return Verdict("out_of_memory", f"{where} was killed (exit code 137), which is mostly for memory")
    if code in (errors.Preempted.exit_code, 128 + signal.SIGTERM) or deleted:
        return Verdict("preempted", f"{where} was asked to end (exit code {code})", _SAVED)
    log = str(ended.get("message") or "").strip()
    return Verdict(_by_code(code), f"{where} ended with exit code {code}" + (f":\n{log[-2000:]}" if log else ""))


def _told(where: str, report: Report) -> Verdict:
    if report.outcome == "preempted":
        return Verdict("preempted", f"{where}: {report.what}", _SAVED)
    cause: Cause = report.cause if report.cause in CAUSES else "unknown"  # type: ignore[assignment]
    tail = f"; its last lines:\n{report.tail}" if report.tail else ""
    return Verdict(cause, f"{where}, rank {report.rank}: {report.what}{tail}", report.fix, report.error)


def _evicted(where: str, message: str) -> Verdict:
    """By the kubelet: over its own limit again at the next try, or in the way of others."""
    said = f"{where} was evicted: {message}"
    if re.search(r"memory", message, re.IGNORECASE) and "emptydir" not in message.lower():
        return Verdict("out_of_memory", said, "give resources_per_node more memory")
    if re.search(r"exceed", message, re.IGNORECASE):
        return Verdict("bad_config", said, "raise the limit that it names (the runtime's volumes, resources_per_node)")
    return Verdict("node_lost", said)


def _by_code(code: int) -> Cause:
    return {errors.ConfigError.exit_code: "bad_config", errors.DataError.exit_code: "bad_data"}.get(code, "unknown")  # type: ignore[return-value]


def condition(item: Object, kind: str) -> Object | None:
    """A condition of an object whose status is True."""
    for found in item.get("status", {}).get("conditions", []):
        if found.get("type") == kind and found.get("status") == "True":
            return dict(found)
    return None
