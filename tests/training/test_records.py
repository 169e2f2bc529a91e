import subprocess
import time

from atelier.training.records import first_failure, has_failed


def test_a_rank_that_nobody_has_buried_yet_is_dead() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not has_failed({"pid": process.pid})
        process.kill()
        deadline = time.monotonic() + 30
        while not has_failed({"pid": process.pid}) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.returncode is None, "not waited for"
        assert has_failed({"pid": process.pid})
    assert has_failed({"pid": process.pid}), "buried"


def test_who_was_killed_comes_before_who_lost_a_peer() -> None:
    lost = {"pid": 1, "outcome": "failed", "ended": 5.0}
    assert first_failure({0: lost, 1: {"pid": 2}}) == 1
    assert first_failure({0: lost, 1: lost | {"ended": 4.0}, 2: {"pid": 3, "outcome": "complete"}}) == 1
