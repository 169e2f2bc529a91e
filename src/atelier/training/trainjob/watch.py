"""One TrainJob, watched from its creation (or from where another launcher left off) to its end."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from atelier.errors import ConfigError, ServiceError
from atelier.progress import format_duration
from atelier.training.trainjob import names
from atelier.training.trainjob.api import Api, Object
from atelier.training.trainjob.evidence import Pods, Verdict, condition, judge
from atelier.training.trainjob.logs import LogFollower, seconds_of
from atelier.training.trainjob.pending import Waiting, waiting

SETTLE_S, HOPELESS_S = 6.0, 120.0
"""For the pods' last words to arrive after the job has failed; for an image to be pulled after all."""


@dataclass(frozen=True)
class End:
    """How a watched TrainJob ended.

    Attributes:
        outcome: ``interrupted``: this launcher was signalled, the job runs on.
        verdict: of a failed one.
        seconds: node-seconds that it ran.
    """

    outcome: Literal["complete", "failed", "interrupted"]
    seconds: float
    verdict: Verdict | None = None


class Watch:
    """Polls a TrainJob and its pods.

    Args:
        show: is given each line of rank 0's output.
        wait: waits so many seconds; True as soon as this launcher is signalled.
        pending_s: how long the nodes may wait for a place.
        poll_s: between two looks.
    """

    def __init__(
        self,
        api: Api,
        name: str,
        show: Callable[[str], None],
        wait: Callable[[float], bool],
        pending_s: float,
        poll_s: float = 3.0,
        settle_s: float = SETTLE_S,
        hopeless_s: float = HOPELESS_S,
    ) -> None:
        self.api, self.name, self.show, self.wait = api, name, show, wait
        self.pending_s, self.poll_s, self.settle_s, self.hopeless_s = pending_s, poll_s, settle_s, hopeless_s
        self.pods = Pods()
        self._log: LogFollower | None = None
        self._told = ""
        self._hopeless_since: float | None = None
        self._running = False

    def follow(self) -> End:
        """Returns when the TrainJob has ended or this launcher is signalled.

        Raises:
            ConfigError: its pods cannot start. ServiceError: they found no place in ``pending_s``, or no API server.
                The TrainJob is deleted in both cases.
        """
        try:
            end = self._follow()
        except BaseException:
            self._stop_log(0.0)
            raise
        self._stop_log(0.5 if end.outcome == "interrupted" else 10.0)
        return end

    def _follow(self) -> End:
        failed_at: float | None = None
        while True:
            job = self._look()
            if job is None:
                gone = Verdict("unknown", f"TrainJob {self.name} was deleted by somebody", "run again", final=True)
                return End("failed", self.pods.seconds, gone)
            self._follow_log()
            if condition(job, "Complete"):
                return End("complete", self.pods.seconds)
            if condition(job, "Failed"):
                failed_at = failed_at or time.monotonic()
                if self._settled() or time.monotonic() - failed_at > self.settle_s:
                    return End("failed", self.pods.seconds, judge(job, self.pods, self._events()))
            else:
                self._see_to_start(job)
            if self.wait(self.poll_s):
                return End("interrupted", self.pods.seconds)

    def _look(self) -> Object | None:
        job = self.api.job(self.name)
        self.pods.update(self.api.find("pods", labels=f"{names.JOBSET}={self.name}"))
        return job

    def _settled(self) -> bool:
        """Whether no pod that is still there can tell more."""
        return bool(self.pods.seen) and all(
            pod.gone or pod.phase in ("Failed", "Succeeded") for pod in self.pods.seen.values()
        )

    def _events(self) -> list[Object]:
        """Warnings and notes about the job and its pods, oldest first."""
        ours = [event for event in self.api.find("events") if event["involvedObject"]["name"].startswith(self.name)]
        return sorted(ours, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))

    def _follow_log(self) -> None:
        pod = self.pods.first_node
        if pod is not None and (self._log is None or self._log.pod != pod.name):
            self._stop_log(1.0)
            self._log = LogFollower(self.api, pod.name, self.show)

    def _stop_log(self, drain_s: float) -> None:
        if self._log is not None:
            log, self._log = self._log, None
            log.stop(drain_s)

    def _see_to_start(self, job: Object) -> None:
        """Says what the nodes wait for, and gives up on what cannot come."""
        here = [pod for pod in self.pods.seen.values() if not pod.gone]
        if here and all(pod.phase != "Pending" for pod in here):
            if not self._running and all(pod.phase == "Running" for pod in here):
                self._running = True
                self._tell(f"{len(here)} nodes run")
            self._hopeless_since = None  # what held them up is over; another time it has its two minutes again
            return
        self._running = False
        since = seconds_of(job["metadata"].get("creationTimestamp") or "") or time.time()
        since = max([since, *(pod.last for pod in self.pods.seen.values())])  # a queue may take a running one back
        held = waiting(job, self.pods, self._events())
        if held is not None:
            self._tell(f"waits: {held.what}")
        self._give_up_hopeless(held)
        if time.time() - since > self.pending_s:
            self.api.delete_job(self.name)
            raise ServiceError(
                f"TrainJob {self.name} found no place for its nodes in {format_duration(self.pending_s)}"
                + (f": {held.what}" if held else ""),
                "wait for capacity, choose another GPU or node pool in the profile, or raise pending_s",
            )

    def _give_up_hopeless(self, held: Waiting | None) -> None:
        if held is None or not held.fix:
            self._hopeless_since = None
            return
        self._hopeless_since = self._hopeless_since or time.monotonic()
        if time.monotonic() - self._hopeless_since > self.hopeless_s:
            self.api.delete_job(self.name)
            raise ConfigError(f"TrainJob {self.name} cannot start: {held.what}", held.fix)

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            print(f"TrainJob {self.name}: {what}", file=sys.stderr, flush=True)
