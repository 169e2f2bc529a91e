"""Why a training's nodes do not start: from the pods' own words and events, before any GPU is paid for."""

from dataclasses import dataclass

from atelier.training.trainjob.api import Object
from atelier.training.trainjob.evidence import Pods, condition

_HOPELESS = {
    "ErrImagePull": "push the image, or correct it in the profile",
    "ImagePullBackOff": "push the image, or correct it in the profile",
    "InvalidImageName": "correct the image in the profile",
    "ErrImageNeverPull": "load the image onto the nodes",
    "CreateContainerConfigError": "create the secret or key that it names",
    "CreateContainerError": "correct the profile",
    "RunContainerError": "correct the image or the profile",
}
"""Reasons that no waiting mends, with what would."""


@dataclass(frozen=True)
class Waiting:
    """What a training waits for.

    Attributes:
        what: as the cluster says it.
        fix: for what no waiting mends; "" while there is hope.
    """

    what: str
    fix: str = ""


def waiting(job: Object, pods: Pods, events: list[Object]) -> Waiting | None:
    """The reason for which not all nodes run; None when the cluster gives none.

    Args:
        events: of the TrainJob's objects, oldest first.
    """
    for pod in pods.seen.values():
        if pod.gone or pod.phase != "Pending":
            continue
        held = pod.state.get("waiting", {})
        if held.get("reason") in _HOPELESS:
            said = f"{pod.name}: {held['reason']}: {held.get('message', '')}".rstrip(": ")
            return Waiting(said, _HOPELESS[held["reason"]])
    for pod in pods.seen.values():
        for found in pod.object.get("status", {}).get("conditions", []):
            unplaced = found.get("type") == "PodScheduled" and found.get("status") == "False"
            if unplaced and not pod.gone:
                said = f"{pod.name}: {found.get('reason', '')}: {found.get('message', '')}".rstrip(": ")
                return Waiting(said)
    for event in reversed(events):
        if event.get("type") == "Warning" and not pods.started:
            return Waiting(f"{event['involvedObject']['name']}: {event.get('reason')}: {event.get('message', '')}")
    if condition(job, "Suspended") or job.get("spec", {}).get("suspend"):
        return Waiting("it is suspended: its queue has not let it in yet")
    return None
