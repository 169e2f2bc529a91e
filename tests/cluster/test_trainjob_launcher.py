"""The launcher against a real API server, by the pipeline's own account; the test plays the rest of the cluster."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import (
    AtelierError,
    CollectiveFailed,
    ConfigError,
    DataError,
    NodeLost,
    OutOfMemory,
    Preempted,
    ServiceError,
    TrainingError,
)
from atelier.training.trainjob import watch
from atelier.training.trainjob.report import Report
from tests.cluster.kubectl import Kubectl
from tests.cluster.launching import RUN, Launched, settings, start
from tests.cluster.trainer import Trainer, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

AGO = "2026-01-01T00:00:00Z"


@pytest.fixture(autouse=True)
def account(runner_config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The launcher is the pipeline's runner, of the run ``RUN``, outside any pod."""
    monkeypatch.setenv("KUBECONFIG", str(runner_config))
    monkeypatch.setenv("ATELIER_RUN_ID", RUN)
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return iter([None])


def name_of(job: Any) -> str:
    return str(job["metadata"]["name"])


def complete(trainer: Trainer, count: int = 1) -> str:
    """Lets the newest TrainJob run and complete."""
    name = name_of(trainer.wait_for_job(count))
    for pod in trainer.create_pods(trainer.jobs()[-1]):
        trainer.run(pod)
        trainer.end(pod, 0, Report("complete").to_json())
    trainer.set_job(name, "Complete", "AllJobsCompleted")
    return name


def test_watched_to_complete_with_its_log_and_its_cost(trainer: Trainer, tmp_path: Path) -> None:
    launched = Launched(tmp_path / "logs")
    job = trainer.wait_for_job()
    assert job["spec"]["trainer"]["numProcPerNode"] == 2
    assert job["metadata"]["labels"]["atelier/run"] == RUN
    trainer.kubelet.breaks = 3
    first, second = trainer.create_pods(job)
    trainer.run(first, second)
    for number in range(8):
        trainer.kubelet.say(first, f"line {number}")
        trainer.kubelet.say(first, "again")
        trainer.kubelet.say(second, "of another node")
        time.sleep(0.1)
    wait_for(lambda: trainer.kubelet.breaks == 0, 30)
    trainer.kubelet.say(first, "the last line")
    trainer.end(first, 0, Report("complete").to_json(), began=AGO)
    trainer.end(second, 0, Report("complete").to_json(), began=AGO)
    trainer.set_job(name_of(job), "Complete", "AllJobsCompleted")
    assert launched.result() is None
    shown = (tmp_path / "logs" / "rank-00.log").read_text().splitlines()
    wanted = [text for number in range(8) for text in (f"line {number}", "again")]
    assert shown == [*wanted, "the last line"], "every line once, over three reconnects"
    assert launched.launcher.facts["gpu_hours"] > 100
    assert launched.launcher.facts["attempts"] == 1
    assert float(trainer.jobs()[0]["metadata"]["annotations"]["atelier/node-seconds"]) > 0


def end_as(trainer: Trainer, cause: str, first: str, second: str) -> None:
    """Two running pods come to an end as that cause would have it."""
    lost = Report("failed", "nccl", 0, "RuntimeError", "Connection closed by peer").to_json()
    if cause == "preempted":
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "m"}
        trainer.end(second, 137, conditions=[condition])
        trainer.end(first, 75, Report("preempted", "preempted").to_json())
    elif cause == "node_lost":
        trainer.event(second, "TaintManagerEviction", "Marking for deletion Pod")
        trainer.core.delete_namespaced_pod(second, trainer.namespace, grace_period_seconds=0)
        trainer.end(first, 1, lost)
    elif cause == "out_of_memory":
        trainer.end(second, 137, reason="OOMKilled")
        trainer.end(first, 1, lost)
    elif cause == "nccl":
        trainer.end(first, 1, lost)
        trainer.end(second, 1, lost)
    elif cause == "bad_data":
        report = Report("failed", "bad_data", 2, "DataError", "shard 7 is truncated", "make it again", "  last words")
        trainer.end(second, 3, report.to_json())
        trainer.end(first, 1, lost)
    elif cause == "bad_config":
        trainer.end(first, 2, Report("failed", "bad_config", 0, "ConfigError", "lr is negative").to_json())
        trainer.end(second, 75)
    else:
        trainer.end(first, 1, "Traceback (most recent call last): nobody expected this")
        trainer.end(second, 75)


CAUSES: list[tuple[str, type[AtelierError], int, str]] = [
    ("preempted", Preempted, 75, "PreemptionByScheduler"),
    ("node_lost", NodeLost, 9, "TaintManagerEviction"),
    ("out_of_memory", OutOfMemory, 7, "OOMKilled"),
    ("nccl", CollectiveFailed, 8, "Connection closed by peer"),
    ("bad_data", DataError, 3, "shard 7 is truncated"),
    ("bad_config", ConfigError, 2, "lr is negative"),
    ("unknown", TrainingError, 6, "nobody expected this"),
]


@pytest.mark.parametrize(("cause", "kind", "code", "said"), CAUSES, ids=[case[0] for case in CAUSES])
def test_failed_by_each_cause(
    trainer: Trainer, tmp_path: Path, cause: str, kind: type[AtelierError], code: int, said: str
) -> None:
    """With one more try allowed for this cause and none for any other: two TrainJobs, then its own error."""
    launched = Launched(tmp_path / "logs", given=settings(retries={cause: 1}))
    for attempt in (1, 2):
        job = trainer.wait_for_job(attempt)
        assert name_of(job).endswith(f"-{attempt}")
        first, second = trainer.create_pods(job)
        trainer.run(first, second)
        time.sleep(0.5)  # seen to run
        end_as(trainer, cause, first, second)
        trainer.set_job(name_of(job), "Failed", message="jobset failed due to one or more job failures")
    error = launched.result()
    assert isinstance(error, kind), error
    assert (error.exit_code, type(error)) == (code, kind)
    assert said in error.what
    assert f"ended as {cause} after 2 tries" in error.what
    judged = [job["metadata"]["annotations"]["atelier/cause"] for job in trainer.jobs()]
    assert judged == [cause, cause]


def test_budgets_are_counted_apart(trainer: Trainer, tmp_path: Path) -> None:
    launched = Launched(tmp_path / "logs", given=settings(retries={"preempted": 2, "nccl": 1}))
    for attempt, cause in enumerate(("preempted", "nccl", "preempted"), 1):
        job = trainer.wait_for_job(attempt)
        first, second = trainer.create_pods(job)
        trainer.run(first, second)
        end_as(trainer, cause, first, second)
        trainer.set_job(name_of(job), "Failed")
    complete(trainer, 4)
    assert launched.result() is None
    assert launched.launcher.facts["attempts"] == 4


def test_the_next_try_waits_until_the_last_one_has_saved(trainer: Trainer, tmp_path: Path) -> None:
    launched = Launched(tmp_path / "logs", given=settings(retries={"preempted": 1}))
    first, second = trainer.create_pods(trainer.wait_for_job())
    trainer.run(first, second)
    trainer.end(second, 143)
    trainer.set_job(name_of(trainer.jobs()[0]), "Failed")
    time.sleep(8)
    assert len(trainer.jobs()) == 1, "one pod still runs"
    trainer.end(first, 75)
    complete(trainer, 2)
    assert launched.result() is None


def test_a_killed_launcher_finds_its_job_again(trainer: Trainer, tmp_path: Path) -> None:
    first = start(tmp_path / "a", settings())
    job = trainer.wait_for_job()
    pods = trainer.create_pods(job)
    trainer.run(*pods)
    trainer.kubelet.say(pods[0], "from before")
    time.sleep(0.5)
    first.kill()
    first.communicate()
    second = start(tmp_path / "b", settings())
    wait_for(
        lambda: (
            (tmp_path / "b" / "rank-00.log").exists() and "from before" in (tmp_path / "b" / "rank-00.log").read_text()
        )
    )
    for pod in pods:
        trainer.end(pod, 0, Report("complete").to_json())
    trainer.set_job(name_of(job), "Complete")
    shown, _ = second.communicate(timeout=60)
    assert second.returncode == 0, shown
    assert "watching it on" in shown
    assert [name_of(found) for found in trainer.jobs()] == [name_of(job)], "no second one was started"
    # and a third finds it complete
    third = start(tmp_path / "c", settings())
    shown, _ = third.communicate(timeout=60)
    assert third.returncode == 0, shown
    assert len(trainer.jobs()) == 1


def test_what_failed_while_nobody_watched_counts(trainer: Trainer, tmp_path: Path) -> None:
    given = settings(retries={"bad_data": 1})
    first = start(tmp_path / "a", given)
    job = trainer.wait_for_job()
    pods = trainer.create_pods(job)
    trainer.run(*pods)
    first.kill()
    first.communicate()
    end_as(trainer, "bad_data", *pods)
    trainer.set_job(name_of(job), "Failed")
    second = start(tmp_path / "b", given)
    job = trainer.wait_for_job(2)
    pods = trainer.create_pods(job)
    trainer.run(*pods)
    end_as(trainer, "bad_data", *pods)
    trainer.set_job(name_of(job), "Failed")
    shown, _ = second.communicate(timeout=60)
    assert second.returncode == DataError.exit_code, shown
    assert "after 2 tries" in shown
    # The engine's own retry of the step spends nothing more.
    third = start(tmp_path / "c", given)
    shown, _ = third.communicate(timeout=60)
    assert third.returncode == DataError.exit_code, shown
    assert "start a new run" in shown
    assert len(trainer.jobs()) == 2


def in_workflow(trainer: Trainer, cluster: Kubectl) -> dict[str, str]:
    """A workflow and the launcher's pod in it; the variables that KFP gives such a pod."""
    custom = trainer.custom
    workflow = custom.create_namespaced_custom_object(
        "argoproj.io", "v1alpha1", "atelier", "workflows",
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "run-abc"},
         "spec": {"entrypoint": "x", "templates": [{"name": "x", "container": {"image": "x"}}]}},
    )  # fmt: skip
    trainer.core.create_namespaced_pod("atelier", {
        "metadata": {
            "name": "run-abc-train-1", "labels": {"pipeline/runid": RUN},
            "ownerReferences": [{"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-abc",
                                 "uid": workflow["metadata"]["uid"], "controller": True}],
        },
        "spec": {"serviceAccountName": "pipeline-runner", "automountServiceAccountToken": False,
                 "containers": [{"name": "main", "image": "x"}]},
    })  # fmt: skip
    return {"KFP_POD_NAME": "run-abc-train-1", "ATELIER_RUN_ID": ""}


@pytest.mark.parametrize("how", ["terminated by KFP", "shut down by Argo", "deleted", "moved"])
def test_sigterm_in_a_workflow(trainer: Trainer, cluster: Kubectl, tmp_path: Path, how: str) -> None:
    launcher = start(tmp_path, settings(), **in_workflow(trainer, cluster))
    job = trainer.wait_for_job()
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Workflow", "run-abc")
    assert job["metadata"]["labels"]["atelier/run"] == RUN
    trainer.run(*trainer.create_pods(job))
    patch = {"terminated by KFP": {"activeDeadlineSeconds": 0}, "shut down by Argo": {"shutdown": "Terminate"}}.get(how)
    place = ("argoproj.io", "v1alpha1", "atelier", "workflows", "run-abc")
    if patch:
        trainer.custom.patch_namespaced_custom_object(*place, {"spec": patch})
    elif how == "deleted":
        trainer.custom.delete_namespaced_custom_object(*place)
    launcher.send_signal(signal.SIGTERM)
    shown, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == Preempted.exit_code, shown
    if how == "moved":
        assert "runs on" in shown
        assert len(trainer.jobs()) == 1
        again = start(tmp_path / "again", settings(), KFP_POD_NAME="run-abc-train-1", ATELIER_RUN_ID="")
        time.sleep(2)
        trainer.set_job(name_of(job), "Complete")
        assert again.wait(60) == 0
        assert len(trainer.jobs()) == 1
    else:
        assert "the run was ended" in shown
        assert trainer.jobs() == []


def test_ctrl_c_outside_a_workflow_deletes_and_says_so(trainer: Trainer, tmp_path: Path) -> None:
    launcher = start(tmp_path, settings())
    job = trainer.wait_for_job()
    launcher.send_signal(signal.SIGINT)
    shown, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == Preempted.exit_code, shown
    assert f"{name_of(job)} was deleted" in shown
    assert trainer.jobs() == []


def test_a_job_that_somebody_deletes_ends_the_step(trainer: Trainer, tmp_path: Path) -> None:
    launched = Launched(tmp_path / "logs", given=settings(retries={"unknown": 5}))
    name = name_of(trainer.wait_for_job())
    trainer.clear()
    error = launched.result()
    assert isinstance(error, TrainingError)
    assert f"{name} was deleted by somebody" in error.what
    assert trainer.jobs() == []


def test_an_image_that_cannot_be_pulled(trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.Watch.__init__, "__defaults__", (3.0, 6.0, 1.0))
    launched = Launched(tmp_path / "logs")
    pods = trainer.create_pods(trainer.wait_for_job())
    state = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "atelier-train:test"'}}
    trainer.set_pod(pods[0], "Pending", state)
    error = launched.result()
    assert isinstance(error, ConfigError)
    assert 'Back-off pulling image "atelier-train:test"' in error.what
    assert "push the image" in error.fix
    assert trainer.jobs() == [], "it holds no place in the queue any more"


def test_no_place_for_too_long(trainer: Trainer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launched = Launched(tmp_path / "logs", given=settings(pending_s=3))
    job = trainer.wait_for_job()
    trainer.set_job(name_of(job), "Suspended", "Suspended", "by Kueue")
    wait_for(lambda: "queue has not let it in" in capfd.readouterr().err, 20)
    (pod, _) = trainer.create_pods(job)
    trainer.set_pod(pod, "Pending", conditions=[{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}])  # fmt: skip
    error = launched.result()
    assert isinstance(error, ServiceError)
    assert "Insufficient nvidia.com/gpu" in error.what
    assert trainer.jobs() == []


def test_refused_before_anything_is_made(trainer: Trainer, tmp_path: Path) -> None:
    body = {"metadata": {"name": "tiny"}, "spec": {"hard": {"requests.nvidia.com/gpu": "3"}}}
    trainer.core.create_namespaced_resource_quota("atelier", body)
    try:
        error = Launched(tmp_path / "a").result()
    finally:
        trainer.core.delete_namespaced_resource_quota("tiny", "atelier")
    assert isinstance(error, ConfigError)
    assert "may have 3 of requests.nvidia.com/gpu, the training asks for 4" in error.what
    assert trainer.jobs() == []
    launcher = Launched(tmp_path / "c", given=settings(labels={"bad label": "x"}))
    error = launcher.result()
    assert isinstance(error, ConfigError)
    assert "bad label" in error.what


def test_processes_that_do_not_fit_the_profile(tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    with pytest.raises(ConfigError, match="8 processes on 2 nodes do not fit"):
        launched.launcher.run("toy", [], 8, tmp_path, 2)


def test_two_runs_of_the_same_training_share_one(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[bool] = []
    first = Launched(tmp_path / "a", complete=lambda: bool(done))
    job = trainer.wait_for_job()
    monkeypatch.setenv("ATELIER_RUN_ID", "another-run")
    second = Launched(tmp_path / "b", complete=lambda: bool(done))
    time.sleep(1)
    assert len(trainer.jobs()) == 1
    done.append(True)
    trainer.set_job(name_of(job), "Complete")
    assert first.result() is None
    assert second.result() is None
    assert len(trainer.jobs()) == 1


def test_an_account_that_may_not(
    cluster: Kubectl, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = cluster.as_account("atelier", "trainer").token
    other = cluster.write_config(tmp_path / "kubeconfig", {"token": token})
    monkeypatch.setenv("KUBECONFIG", str(other))
    error = Launched(tmp_path / "logs").result()
    assert isinstance(error, ServiceError)
    assert "forbidden" in error.what
    assert "k8s/base/rbac.yaml" in error.fix


def test_the_runner_reads_a_workflow_and_changes_none(trainer: Trainer, cluster: Kubectl) -> None:
    in_workflow(trainer, cluster)
    runner = cluster.as_account("atelier", "pipeline-runner")
    assert runner.get("workflow", "run-abc", "-n", "atelier")["metadata"]["name"] == "run-abc"
    for wanted in (["delete", "workflow", "run-abc"], ["get", "workflows"], ["delete", "pod", "run-abc-train-1"]):
        assert "forbidden" in runner.run(*wanted, "-n", "atelier").stderr.lower()


def test_no_server_is_said_within_seconds(tmp_path: Path, cluster: Kubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cluster.write_config(tmp_path / "kubeconfig", {})
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    began = time.monotonic()
    error = Launched(tmp_path / "logs").result()
    assert isinstance(error, ServiceError)
    assert "does not answer" in error.what
    assert time.monotonic() - began < 12
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    assert isinstance(Launched(tmp_path / "logs").result(), ConfigError)
