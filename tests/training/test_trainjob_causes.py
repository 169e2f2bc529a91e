"""Causes: what ranks, pods and jobs say of their end, and which of several words explains the others."""

from typing import Any

import pytest

from atelier.training.trainjob.causes import CAUSES, RAISED, cause_of
from atelier.training.trainjob.evidence import Pods, Verdict, judge
from atelier.training.trainjob.pending import waiting
from atelier.training.trainjob.report import LIMIT, Report, parse
from atelier.training.trainjob_settings import Retries


def test_every_cause_has_a_budget_and_an_exit_code_of_its_own() -> None:
    assert set(CAUSES) == set(Retries.model_fields)
    codes = [RAISED[cause].exit_code for cause in CAUSES]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("record", "log", "signal", "oom", "cause"),
    [
        ({"outcome": "failed", "error": "ConfigError"}, "", None, False, "bad_config"),
        ({"outcome": "failed", "error": "DataError"}, "", None, False, "bad_data"),
        ({"outcome": "failed", "error": "TrainingError"}, "", None, False, "bad_config"),
        ({"outcome": "failed", "error": "StorageError"}, "", None, False, "unknown"),
        ({"outcome": "failed", "error": "OutOfMemoryError", "message": "CUDA"}, "", None, False, "out_of_memory"),
        ({"outcome": "failed", "error": "RuntimeError", "message": "CUDA error: out of memory"}, "", None, False,
         "out_of_memory"),
        ({"outcome": "failed", "error": "DistBackendError", "message": "x"}, "", None, False, "nccl"),
        ({"outcome": "failed", "error": "RuntimeError", "message": "[gloo] Connection closed by peer [10.0.0.1]"}, "",
         None, False, "nccl"),
        ({"outcome": "failed", "error": "RuntimeError", "message": "NCCL error: unhandled system error"}, "", None,
         False, "nccl"),
        ({"outcome": "failed", "error": "AcceleratorError", "message": "CUDA error: uncorrectable ECC error"}, "", None,
         False, "node_lost"),
        ({"outcome": "failed", "error": "ValueError", "message": "no"}, "NCCL is named in the log", None, False,
         "unknown"),
        ({"outcome": "preempted"}, "", None, False, "preempted"),
        ({}, "", 9, True, "out_of_memory"),
        ({}, "", 9, False, "unknown"),
        ({}, "", 7, False, "out_of_memory"),
        ({}, "Watchdog caught collective operation timeout", 6, False, "nccl"),
        ({}, "assertion", 6, False, "unknown"),
    ],
)  # fmt: skip
def test_a_ranks_end(record: dict[str, Any], log: str, signal: int | None, oom: bool, cause: str) -> None:
    assert cause_of(record, log, signal, oom) == cause


def pod(
    node: int = 0,
    terminated: dict[str, Any] | None = None,
    reason: str = "",
    message: str = "",
    disruption: str = "",
    waits: dict[str, Any] | None = None,
    phase: str = "Failed",
    scheduled: str = "",
) -> dict[str, Any]:
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": disruption}] if disruption else []
    if scheduled:
        conditions.append({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": scheduled})
    state = {"terminated": terminated} if terminated else {"waiting": waits} if waits else {"running": {}}
    return {
        "metadata": {
            "name": f"job-node-0-{node}-abcde", "uid": f"uid-{node}",
            "labels": {"batch.kubernetes.io/job-completion-index": str(node)},
        },
        "status": {
            "phase": phase, "reason": reason, "message": message, "conditions": conditions,
            "containerStatuses": [{"name": "node", "state": state}],
        },
    }  # fmt: skip


def failed(reason: str = "JobsFailed", message: str = "jobset failed") -> dict[str, Any]:
    return {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": message}]}}


def verdict(*pods: dict[str, Any], job: dict[str, Any] | None = None, events: Any = ()) -> Verdict:
    seen = Pods()
    seen.update(list(pods))
    return judge(job or failed(), seen, list(events))


def ended(code: int, reason: str = "Error", **report: Any) -> dict[str, Any]:
    message = Report("failed", **report).to_json() if report else ""
    return {"exitCode": code, "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (pod(terminated=ended(137, "OOMKilled")), "out_of_memory"),
        (pod(terminated=ended(137)), "out_of_memory"),
        (pod(terminated=ended(1, cause="out_of_memory", rank=3, what="CUDA out of memory")), "out_of_memory"),
        (pod(terminated=ended(3, cause="bad_data", what="shard 7", error="DataError")), "bad_data"),
        (pod(terminated=ended(3)), "bad_data"),
        (pod(terminated=ended(2)), "bad_config"),
        (pod(terminated=ended(1, cause="nccl", what="timeout")), "nccl"),
        (pod(terminated=ended(1)), "unknown"),
        (pod(terminated=ended(75)), "preempted"),
        (pod(terminated=ended(143)), "preempted"),
        (pod(reason="Preempting"), "preempted"),
        (pod(reason="Terminated", message="in response to imminent node shutdown"), "preempted"),
        (pod(reason="NodeLost"), "node_lost"),
        (pod(terminated=ended(137), disruption="DeletionByTaintManager"), "node_lost"),
        (pod(terminated=ended(137), disruption="PreemptionByScheduler"), "preempted"),
        (pod(terminated=ended(137), disruption="EvictionByEvictionAPI"), "preempted"),
        (pod(reason="OutOfnvidia.com/gpu"), "node_lost"),
        (pod(reason="Evicted", message="The node was low on resource: memory."), "out_of_memory"),
        (pod(reason="Evicted", message='Usage of EmptyDir volume "scratch" exceeds the limit "500Gi".'), "bad_config"),
        (pod(reason="Evicted", message="The node had condition: [DiskPressure]."), "node_lost"),
    ],
)
def test_one_pods_end(given: dict[str, Any], cause: str) -> None:
    assert verdict(given).cause == cause


def test_the_first_to_fall_explains_the_others() -> None:
    network = pod(0, ended(1, cause="nccl", rank=0, what="Connection closed by peer"))
    saved = pod(2, ended(75))
    assert verdict(network, pod(1, ended(3, cause="bad_data", what="shard 7 is torn"))).cause == "bad_data"
    assert verdict(network, pod(1, ended(137, "OOMKilled")), saved).cause == "out_of_memory"
    assert verdict(network, pod(1, ended(1, cause="unknown", what="ValueError")), saved).cause == "unknown"
    assert verdict(network, pod(1, reason="NodeLost")).cause == "node_lost"
    assert verdict(network, pod(1, reason="Preempting"), pod(2, ended(137, "OOMKilled"))).cause == "preempted"
    assert verdict(network, saved).cause == "nccl", "that a node saved is no cause where another failed"


def test_the_last_lines_and_the_ranks_own_words_reach_the_person() -> None:
    told = verdict(pod(1, ended(3, cause="bad_data", rank=9, what="shard 7 is torn", error="DataError", tail="  end")))
    assert "node 1" in told.what
    assert "rank 9: shard 7 is torn" in told.what
    assert told.what.endswith("  end")
    assert told.error == "DataError"


def test_what_is_left_of_pods_that_are_gone() -> None:
    event = {"reason": "TaintManagerEviction", "message": "deleting", "involvedObject": {"name": "job-node-0-1-x"}}
    assert verdict(events=[event]).cause == "node_lost"
    running = Pods()
    running.update([pod(phase="Running")])
    running.update([])
    assert judge(failed(), running, []).cause == "node_lost"
    assert verdict().cause == "unknown"
    over = verdict(job=failed("DeadlineExceeded"))
    assert over.final
    assert "deadline" in over.what


def test_what_nodes_wait_for() -> None:
    def of(*pods: dict[str, Any], job: Any = None, events: Any = ()) -> Any:
        seen = Pods()
        seen.update(list(pods))
        return waiting(job or {}, seen, list(events))

    pull = of(pod(phase="Pending", waits={"reason": "ImagePullBackOff", "message": 'image "x" not found'}))
    assert 'image "x" not found' in pull.what
    assert pull.fix
    place = of(pod(phase="Pending", scheduled="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."))
    assert "Insufficient nvidia.com/gpu" in place.what
    assert not place.fix
    event = {"type": "Warning", "reason": "FailedCreate", "message": "exceeded quota: atelier",
             "involvedObject": {"name": "job-node-0"}}  # fmt: skip
    assert "exceeded quota" in of(events=[event]).what
    assert "queue" in of(job={"spec": {"suspend": True}}).what
    assert of(pod(phase="Running")) is None


def test_a_report_fits_and_comes_back() -> None:
    for tail in ("", "x" * 20_000, "é\n" * 9_000):
        report = Report("failed", "nccl", 3, "RuntimeError", "w" * 6000, "f", tail)
        text = report.to_json()
        assert len(text.encode()) <= LIMIT
        back = parse(text)
        assert back is not None
        assert (back.cause, back.rank, back.error) == ("nccl", 3, "RuntimeError")
        assert tail.endswith(back.tail)
    assert parse("Traceback (most recent call last)") is None
    assert parse(None) is None
    assert parse('{"outcome": "failed", "other": 1}') is None
