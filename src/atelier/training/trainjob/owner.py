"""Who the launcher works for: its own pod, and the Argo Workflow that the pod is part of."""

import os
from dataclasses import dataclass
from typing import Any

from atelier.errors import ServiceError
from atelier.training.trainjob.api import Api

WORKFLOWS = "argoproj.io/v1alpha1"
_RUN = "pipeline/runid"
_ENDED = ("Succeeded", "Failed", "Error")


@dataclass(frozen=True)
class Owner:
    """The pipeline run on the cluster.

    Attributes:
        run: KFP's run id (the Workflow's uid where the pod carries none).
        workflow: the Workflow's name; "" outside one.
        uid: the Workflow's.
    """

    run: str = ""
    workflow: str = ""
    uid: str = ""

    @property
    def reference(self) -> dict[str, Any] | None:
        """An ``ownerReferences`` entry: what it owns goes when the Workflow is deleted."""
        if not self.workflow:
            return None
        return {
            "apiVersion": WORKFLOWS,
            "kind": "Workflow",
            "name": self.workflow,
            "uid": self.uid,
            "controller": False,
            "blockOwnerDeletion": False,
        }


def find_owner(api: Api) -> Owner:
    """By this pod's labels and owners; nobody outside a pod of this namespace."""
    pod_name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME", "")
    pod = api.get("pods", pod_name) if pod_name else None
    if pod is None:
        return Owner(run=os.environ.get("ATELIER_RUN_ID", ""))
    metadata = pod["metadata"]
    for owner in metadata.get("ownerReferences", []):
        if owner["kind"] == "Workflow":
            run = metadata.get("labels", {}).get(_RUN) or owner["uid"]
            return Owner(run, owner["name"], owner["uid"])
    return Owner(run=os.environ.get("ATELIER_RUN_ID", ""))


def was_ended(api: Api, owner: Owner) -> bool:
    """Whether a person, a deadline or a failed step ended the run (True), or only this pod goes (False).

    KFP terminates by ``activeDeadlineSeconds: 0``, Argo by ``shutdown``. Where the Workflow cannot be read it counts as
    ended: a training that was ended by mistake goes on from the checkpoint that it saves now, one that nobody watches
    costs its GPUs.
    """
    try:
        workflow = api.get("workflows", owner.workflow, WORKFLOWS)
    except ServiceError:
        return True
    if workflow is None or workflow["metadata"]["uid"] != owner.uid or "deletionTimestamp" in workflow["metadata"]:
        return True
    spec, phase = workflow.get("spec", {}), workflow.get("status", {}).get("phase")
    return bool(spec.get("shutdown")) or spec.get("activeDeadlineSeconds") == 0 or phase in _ENDED
