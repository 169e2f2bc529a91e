"""Deaths of ranks and signals to the launcher, with real processes."""

import json
import signal
import time
from pathlib import Path

import pytest

from atelier.errors import DataError, TrainingError
from atelier.training.callbacks.metrics_log import read_lines
from atelier.training.launcher import LocalLauncher
from tests.training.launching import PATHS, alive, launch, plan, rank_pids, start, wait_until
from tests.training.toy import ToyObjective


def test_killed_rank_ends_the_group_and_is_shown(tmp_path: Path, one_rank: object) -> None:
    settings = plan(tmp_path, objective={"dropout": 0.0, "fault": {"rank": 1, "progress": 0.5, "kind": "kill"}})
    with pytest.raises(TrainingError) as caught:
        launch(settings)
    ended = time.time()
    assert "rank 1 was killed by SIGKILL" in caught.value.what
    assert "about to go wrong" in caught.value.what
    assert not any(alive(pid) for pid in rank_pids(settings))
    survivor = json.loads((tmp_path / "logs" / "rank-00.json").read_text())
    assert ended - survivor.get("ended", ended) < 10
    # Until then two ranks saw what one alone sees: same samples, same draws, same steps.
    one_rank(tmp_path / "alone", ToyObjective(), processes=1)  # type: ignore[operator]
    together = [line["loss"] for line in read_lines(tmp_path / "out" / "metrics.jsonl")]
    alone = [line["loss"] for line in read_lines(tmp_path / "alone" / "metrics.jsonl")]
    assert len(together) == 2
    assert together == pytest.approx(alone[:2], rel=1e-5)


def test_second_interrupt_aborts_at_once(tmp_path: Path) -> None:
    settings = plan(tmp_path, objective={"delay": 3.0}, log_every=1)
    launcher = start(settings)
    wait_until(lambda: len(rank_pids(settings)) == 2)
    pids = rank_pids(settings)
    wait_until(lambda: (tmp_path / "out").exists())
    time.sleep(1.0)
    began = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGINT)
    _, shown = launcher.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert "aborted by a second interrupt" in shown
    wait_until(lambda: not any(alive(pid) for pid in pids), 5)


@pytest.mark.parametrize("kind", ["ours", "foreign"])
def test_error_of_a_rank_is_raised_by_the_launcher(tmp_path: Path, kind: str) -> None:
    launcher = LocalLauncher(environment={"PYTHONPATH": PATHS})
    with pytest.raises(DataError if kind == "ours" else TrainingError) as caught:
        launcher.run("worker_that_fails", [kind], 1, tmp_path / "logs")
    if kind == "ours":
        assert caught.value.what == "shard 7 is truncated"
        assert caught.value.fix == "make it again"
    else:
        assert "rank 0 failed" in caught.value.what
        assert "this is the last thing it said" in caught.value.what
        assert "ValueError: nobody expected this" in caught.value.what


def test_module_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no_such_module"):
        LocalLauncher(environment={"PYTHONPATH": PATHS}).run("no_such_module", [], 1, tmp_path / "logs")
