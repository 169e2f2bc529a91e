"""Plays the cluster for TrainJobs: the Trainer's controller, the scheduler and the kubelet.

It does what they do and no more: makes a job's pods by their naming and labels, says in status what becomes of them,
completes or fails the job. ``RunningTrainer`` starts the pods' very commands as processes of this machine.
"""

import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes import client, config

from atelier.training.group import reserved_port
from tests.cluster.kubelet import NODE, Kubelet

Object = dict[str, Any]
GRACE_S = 60.0
"""terminationGracePeriodSeconds: then the kubelet kills."""
GROUP = ("trainer.kubeflow.org", "v1alpha1")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Trainer:
    """Acts on TrainJobs as the cluster's administrator."""

    def __init__(self, kubeconfig: Path, kubelet: Kubelet, namespace: str = "atelier") -> None:
        connection = config.new_client_from_config(str(kubeconfig))
        self.core, self.custom = client.CoreV1Api(connection), client.CustomObjectsApi(connection)
        self.kubelet, self.namespace = kubelet, namespace

    def register_node(self) -> None:
        """A node whose kubelet is ours, so that the API server finds the logs."""
        try:
            self.core.create_node({"metadata": {"name": NODE}})
        except client.ApiException as error:
            if error.status != 409:
                raise
        self.core.patch_node_status(NODE, {"status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.kubelet.port}},
        }})  # fmt: skip

    def clear(self) -> None:
        """Leaves nothing for the next test."""
        for job in self.jobs():
            self.custom.delete_namespaced_custom_object(*GROUP, self.namespace, "trainjobs", job["metadata"]["name"])
        for pod in self.core.list_namespaced_pod(self.namespace).items:
            self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)
        for event in self.core.list_namespaced_event(self.namespace).items:
            self.core.delete_namespaced_event(event.metadata.name, self.namespace)
        for item in self.custom.list_namespaced_custom_object("argoproj.io", "v1alpha1", self.namespace, "workflows")[
            "items"
        ]:
            self.custom.delete_namespaced_custom_object(
                "argoproj.io", "v1alpha1", self.namespace, "workflows", item["metadata"]["name"]
            )

    def jobs(self) -> list[Object]:
        """All TrainJobs, oldest first."""
        found = self.custom.list_namespaced_custom_object(*GROUP, self.namespace, "trainjobs")["items"]
        return sorted(found, key=lambda job: int(job["metadata"]["labels"].get("atelier/attempt", 0)))

    def wait_for_job(self, count: int = 1, seconds: float = 20.0) -> Object:
        """The newest TrainJob, as soon as there are so many."""
        return wait_for(lambda: found[-1] if len(found := self.jobs()) >= count else None, seconds)

    def create_pods(self, job: Object) -> list[str]:
        """What JobSet makes of a TrainJob: a pod a node, with its labels, bound to our node."""
        name, spec = job["metadata"]["name"], job["spec"]["trainer"]
        made = []
        for index in range(spec["numNodes"]):
            letters = "".join(random.choices(string.ascii_lowercase + string.digits, k=5))
            pod = f"{name}-node-0-{index}-{letters}"
            self.core.create_namespaced_pod(self.namespace, {
                "metadata": {"name": pod, "labels": {
                    "jobset.sigs.k8s.io/jobset-name": name,
                    "jobset.sigs.k8s.io/replicatedjob-name": "node",
                    "batch.kubernetes.io/job-completion-index": str(index),
                    **patched_labels(job),
                }},
                "spec": {
                    "serviceAccountName": "trainer",
                    "automountServiceAccountToken": False,
                    "restartPolicy": "Never",
                    "nodeName": NODE,
                    "containers": [{
                        "name": "node", "image": spec["image"], "command": spec["command"], "args": spec["args"],
                        "env": spec["env"], "resources": spec.get("resourcesPerNode", {}),
                    }],
                },
            })  # fmt: skip
            made.append(pod)
        return made

    def set_pod(self, pod: str, phase: str, state: Object | None = None, **status: Any) -> None:
        """What a kubelet reports: the pod's phase, its container's state, further fields."""
        held: Object = {"phase": phase, **status}
        if state is not None:
            held["containerStatuses"] = [{
                "name": "node", "state": state, "ready": "running" in state, "restartCount": 0,
                "image": "x", "imageID": "x",
            }]  # fmt: skip
        self.core.patch_namespaced_pod_status(pod, self.namespace, {"status": held})

    def run(self, *pods: str) -> None:
        """They run."""
        for pod in pods:
            self.set_pod(pod, "Running", {"running": {"startedAt": now()}})

    def end(self, pod: str, code: int, message: str = "", reason: str = "", began: str = "", **status: Any) -> None:
        """Its container has ended."""
        self.kubelet.ended.add(pod)
        ended = {
            "exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error"), "message": message,
            "startedAt": began or now(), "finishedAt": now(),
        }  # fmt: skip
        self.set_pod(pod, "Failed" if code else "Succeeded", {"terminated": ended}, **status)

    def set_job(self, job: str, condition: str, reason: str = "JobsFailed", message: str = "m") -> None:
        """The Trainer's last word on a job: Complete, Failed or Suspended."""
        told = {"type": condition, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
        self.custom.patch_namespaced_custom_object_status(
            *GROUP, self.namespace, "trainjobs", job, {"status": {"conditions": [told]}}
        )

    def event(self, about: str, reason: str, message: str, kind: str = "Warning") -> None:
        """An event of an object."""
        self.core.create_namespaced_event(self.namespace, {
            "metadata": {"generateName": "event-"}, "type": kind, "reason": reason, "message": message,
            "involvedObject": {"kind": "Pod", "namespace": self.namespace, "name": about},
            "lastTimestamp": now(), "firstTimestamp": now(),
        })  # fmt: skip


def patched_labels(job: Object) -> dict[str, str]:
    """The labels that a TrainJob's patches give its pods."""
    found: dict[str, str] = {}
    for patch in job["spec"].get("runtimePatches", []):
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            assert replicated["name"] == "node"
            found |= replicated["template"]["spec"]["template"].get("metadata", {}).get("labels", {})
    return found


def wait_for(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What ``look`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


class RunningTrainer(Trainer):
    """Runs every TrainJob's nodes as processes: the object's command, arguments and environment, and Trainer's own.

    Each node has a disk of its own: a mount namespace in which the job's scratch folder is another folder (root only).

    Args:
        folder: holds the nodes' disks.
        scratch: the scratch folder that the jobs name.
    """

    def __init__(self, kubeconfig: Path, kubelet: Kubelet, folder: Path, scratch: Path) -> None:
        super().__init__(kubeconfig, kubelet)
        self.folder, self.scratch = folder, scratch
        self.processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._pods: dict[str, list[str]] = {}
        self._failing: dict[str, float] = {}
        self._began: dict[str, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._reconcile, daemon=True)

    def __enter__(self) -> "RunningTrainer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        for processes in self.processes.values():
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()

    def _reconcile(self) -> None:
        while not self._ended.wait(0.2):
            jobs = {job["metadata"]["name"]: job for job in self.jobs()}
            for name, job in jobs.items():
                if name not in self.processes and not job.get("status", {}).get("conditions"):
                    self._start(name, job)
            for name, processes in self.processes.items():
                if name not in jobs:
                    self._stop(name)  # deleted: the kubelet asks its containers to end
                elif name in self._pods and all(process.poll() is not None for process in processes):
                    self._conclude(name, [int(process.returncode) for process in processes])
                elif name in self._pods and any(process.poll() for process in processes):
                    self._fail(name)

    def _start(self, name: str, job: Object) -> None:
        pods, spec, port = self.create_pods(job), job["spec"]["trainer"], reserved_port()
        variables = {entry["name"]: self._value(entry) for entry in spec["env"]}
        started = []
        for index, pod in enumerate(pods):
            disk = self.folder / pod
            disk.mkdir(parents=True)
            environment = variables | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(disk),
                "PET_NNODES": str(spec["numNodes"]),
                "PET_NPROC_PER_NODE": str(spec["numProcPerNode"]),
                "PET_NODE_RANK": str(index),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
                "ATELIER_TERMINATION_LOG": str(self.folder / f"{pod}.message"),
            }
            process = subprocess.Popen(
                [*self._own_disk(disk), *spec["command"], *spec["args"]],
                env=environment, cwd=disk, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            threading.Thread(target=self._read, args=(pod, process), daemon=True).start()
            started.append(process)
        self.run(*pods)
        self._began[name] = now()
        self._pods[name], self.processes[name] = pods, started

    def _own_disk(self, disk: Path) -> list[str]:
        self.scratch.mkdir(parents=True, exist_ok=True)
        if os.geteuid() or shutil.which("unshare") is None:
            return []
        script = 'mount --bind "$0" "$1" && shift && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(disk), str(self.scratch)]

    def _value(self, entry: Object) -> str:
        if "valueFrom" not in entry:
            return str(entry["value"])
        import base64

        wanted = entry["valueFrom"]["secretKeyRef"]
        secret = self.core.read_namespaced_secret(wanted["name"], self.namespace)
        return base64.b64decode(secret.data[wanted["key"]]).decode()

    def _read(self, pod: str, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.kubelet.say(pod, line.decode(errors="replace").rstrip("\n"))

    def _fail(self, name: str) -> None:
        """A pod failed: its Job (backoffLimit 0) has failed, and has the others end."""
        if name not in self._failing:
            self._failing[name] = time.monotonic()
            for process in self.processes[name]:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
        elif time.monotonic() - self._failing[name] > GRACE_S:
            for process in self.processes[name]:
                if process.poll() is None:
                    process.kill()

    def _stop(self, name: str) -> None:
        if name in self._pods:
            del self._pods[name]
            for process in self.processes[name]:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)

    def _conclude(self, name: str, codes: list[int]) -> None:
        for pod, code in zip(self._pods.pop(name), codes, strict=True):
            message = self.folder / f"{pod}.message"
            text = message.read_text() if message.exists() else ""
            time.sleep(0.1)  # the reader's last lines
            self.end(pod, code if code >= 0 else 128 - code, text, began=self._began[name])
        self.set_job(name, "Failed" if any(codes) else "Complete", message=json.dumps(codes))
