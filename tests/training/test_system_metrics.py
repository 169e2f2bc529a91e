"""System metrics of two nodes in one run of a real MLflow store."""

import time
from types import SimpleNamespace
from typing import Any

from atelier.tracking.runs import attach, child_run
from atelier.tracking.service import client
from atelier.training.callbacks.system_metrics import LogSystemMetrics
from tests.tracking.conftest import empty_store, store  # noqa: F401  (fixtures)


def test_every_node_writes_to_the_one_run(store: str) -> None:  # noqa: F811
    with child_run("train", uri=store) as owner:
        run_id = owner.run_id()
        assert run_id is not None
        run: Any = SimpleNamespace(step=7)
        trackers = [attach(run_id, store) for _ in range(2)]
        nodes = [LogSystemMetrics(tracker, f"node-{i}", every_s=0.05) for i, tracker in enumerate(trackers)]
        for node in nodes:
            node.on_start(run)
        time.sleep(0.3)
        for node, tracker in zip(nodes, trackers, strict=True):
            node.on_end(run)
            tracker.close()
    metrics = client(store).get_run(run_id).data.metrics
    for name in ("node-0", "node-1"):
        assert 0 <= metrics[f"system/{name}/cpu_utilization_percentage"] <= 100
        assert metrics[f"system/{name}/system_memory_usage_megabytes"] > 10
    history = client(store).get_metric_history(run_id, "system/node-1/cpu_utilization_percentage")
    assert len(history) >= 2
    assert {point.step for point in history} == {7}
    assert not any(node._thread is not None and node._thread.is_alive() for node in nodes)


def test_without_a_tracker_no_thread_runs() -> None:
    silent = LogSystemMetrics(None)
    silent.on_start(SimpleNamespace(step=0))  # type: ignore[arg-type]
    assert silent._thread is None
