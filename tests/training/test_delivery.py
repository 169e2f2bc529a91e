"""What a training on other machines hands over, on real S3 servers; and how it notices that nobody waits for it."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atelier.errors import StorageError
from atelier.storage import s3
from atelier.storage.folder import OutputFolder, existing
from atelier.training.callbacks.base import Request
from atelier.training.callbacks.end_unwatched import EndUnwatched
from atelier.training.callbacks.keep_previews import KeepPreviews
from atelier.training.delivery import deliver, delivered
from atelier.training.series import open_single
from atelier.training.trainjob.heartbeat import Heartbeat
from tests.training.launching import wait_until


def finished(folder: Path, place: str) -> None:
    """Two machines' parts of a final checkpoint on S3, and rank 0's other files in ``folder``."""
    for rank in range(2):
        single = open_single(f"{place}/checkpoint", folder / f"disk-{rank}")
        scratch = single.scratch(9)
        scratch.mkdir(parents=True)
        part = scratch / f"rank-{rank:05d}.safetensors"
        part.write_bytes(bytes(100 + rank))
        from atelier.storage.digest import sha256_file

        single.deliver(9, rank, [{"path": part.name, "bytes": 100 + rank, "sha256": sha256_file(part)}])
    single.publish(9, 2, {"step": 9})
    out = folder / "out"
    (out / "previews").mkdir(parents=True)
    (out / ".logs").mkdir()
    for name in ("train.json", "previews/step-000009.png", ".logs/rank-00.log", ".plan.json"):
        (out / name).write_text(name)


def test_delivered_files_become_the_steps_output_without_a_copy(s3_bucket: str, tmp_path: Path) -> None:
    assert delivered(s3_bucket) is None
    finished(tmp_path, s3_bucket)
    assert delivered(s3_bucket) is None, "not before the list is there"
    deliver(tmp_path / "out", s3_bucket, ["checkpoint"])
    entries = delivered(s3_bucket)
    assert entries is not None
    out = OutputFolder(s3_bucket, tmp_path / "work")
    out.adopt(entries)
    assert existing(s3_bucket) is None
    manifest = out.finish("training", {}, {})
    assert [entry.path for entry in manifest.files] == [
        "checkpoint/manifest.json", "checkpoint/rank-00000.safetensors", "checkpoint/rank-00001.safetensors",
        "previews/step-000009.png", "train.json",
    ]  # fmt: skip
    assert existing(s3_bucket) == manifest
    assert json.loads(s3.read_bytes(f"{s3_bucket}/checkpoint/manifest.json"))["state"] == {"step": 9}


def test_a_file_that_was_lost_is_nothing_delivered(s3_bucket: str, tmp_path: Path) -> None:
    finished(tmp_path, s3_bucket)
    deliver(tmp_path / "out", s3_bucket, ["checkpoint"])
    entries = delivered(s3_bucket)
    assert entries is not None
    s3.write_bytes(f"{s3_bucket}/checkpoint/rank-00001.safetensors", b"short")
    assert delivered(s3_bucket) is None
    with pytest.raises(StorageError, match=r"rank-00001\.safetensors: 5 bytes there, 101 were delivered"):
        OutputFolder(s3_bucket, tmp_path / "work").adopt(entries)


def run(folder: Path, step: int, first: bool = True) -> Any:
    return SimpleNamespace(folder=folder, step=step, ranks=SimpleNamespace(first=first))


def test_previews_come_back_on_another_machine(s3_bucket: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "previews").mkdir(parents=True)
    (one / "previews" / "step-000004.png").write_bytes(b"four")
    kept = KeepPreviews(s3_bucket)
    kept.on_start(run(one, 0))
    kept.on_save(run(one, 5))
    KeepPreviews(s3_bucket).on_start(run(other, 5))
    assert (other / "previews" / "step-000004.png").read_bytes() == b"four"
    KeepPreviews(s3_bucket).on_start(run(tmp_path / "second rank", 5, first=False))
    assert not (tmp_path / "second rank").exists()


def test_a_store_that_is_away_costs_pictures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "thing")
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    KeepPreviews("s3://nowhere/x").on_start(run(tmp_path, 5))
    assert "warning: earlier previews were not fetched" in capsys.readouterr().err


def test_a_training_ends_when_its_launcher_is_gone(s3_bucket: str, tmp_path: Path) -> None:
    sign = f"{s3_bucket}/.watched"
    assert s3.age(sign) is None
    training = EndUnwatched(sign, limit_s=2.5, every_s=0.1)
    training.on_start(run(tmp_path, 0))
    with Heartbeat(lambda: s3.write_bytes(sign, b""), every_s=0.2):
        time.sleep(4)
        assert training.request(run(tmp_path, 1)) == Request.NOTHING
    wait_until(lambda: training.request(run(tmp_path, 2)) == Request.STOP, 15)
    age = s3.age(sign)
    assert age is not None
    assert age > 2
    training.on_end(run(tmp_path, 3))
