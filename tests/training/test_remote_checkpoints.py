"""Checkpoints on a real S3 server: resumed from, damaged, and through a network that fails every fifth time."""

import os
from pathlib import Path

import pytest

from atelier.errors import AtelierError, Preempted
from atelier.storage import s3
from atelier.training.series import S3Series
from tests.faulty_proxy import FAULTS, FaultyProxy
from tests.training.launching import launch, plan
from tests.training.test_resume import logged, optimizer_bits


def test_resumed_from_s3_on_another_machine(s3_bucket: str, undisturbed: Path, tmp_path: Path) -> None:
    """The second try has nothing of the first's disk; the newest checkpoint was damaged on the server."""
    place = f"{s3_bucket}/checkpoints"
    first = plan(tmp_path / "first", checkpoints_at=place, stop_at=14)
    with pytest.raises(Preempted):
        launch(first)
    series = S3Series(place, tmp_path / "work")
    last, before, *_ = series.steps()
    assert last == 14
    assert last - before <= 6
    damaged = f"{place}/step-00000014/rank-00001.safetensors"
    data = bytearray(s3.read_bytes(damaged))
    data[-9] ^= 16
    s3.write_bytes(damaged, bytes(data))

    launch(plan(tmp_path / "second", checkpoints_at=place))
    log = (tmp_path / "second" / "logs" / "rank-00.log").read_text()
    assert f"resuming from step {before} of" in log
    assert "step-00000014 is damaged" in "".join(
        (tmp_path / "second" / "logs" / f"rank-0{rank}.log").read_text() for rank in range(2)
    )
    assert logged(tmp_path / "second") == logged(undisturbed)
    assert optimizer_bits(tmp_path / "second") == optimizer_bits(undisturbed)
    assert not s3.sizes(place), "a finished training leaves no intermediate checkpoints"


@pytest.mark.slow
def test_a_network_that_fails_every_fifth_time(
    s3_bucket: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{s3_bucket}/checkpoints"
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"], share=0.2, seed=3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("ATELIER_S3_TIMEOUT_S", "1.5")
        with pytest.raises(Preempted):
            launch(plan(tmp_path, checkpoints_at=place, stop_at=13))
        launch(plan(tmp_path, checkpoints_at=place))
        assert set(proxy.done) >= set(FAULTS), f"the network was too good: {proxy.done}"
    assert logged(tmp_path) == logged(undisturbed)
    assert optimizer_bits(tmp_path) == optimizer_bits(undisturbed)


@pytest.mark.slow
def test_a_dead_server_is_no_fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "thing")
    with pytest.raises(AtelierError, match="does not answer"):
        launch(plan(tmp_path, checkpoints_at="s3://nowhere/checkpoints", processes=1), 1)
