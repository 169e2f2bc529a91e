"""Checkpoint folders that were damaged in every way are skipped, and named."""

import json
from pathlib import Path

import pytest

from atelier.storage.digest import sha256_file
from atelier.training import checkpoint as checkpoints


def make(folder: Path, step: int) -> Path:
    """A checkpoint folder with one file of weights, as ``save`` leaves it."""
    path = folder / checkpoints.folder_name(step)
    (path / "state").mkdir(parents=True)
    (path / "state" / "weights.pt").write_bytes(bytes(range(256)) * 8)
    (path / "state.json").write_text(json.dumps({"step": step}))
    files = [{"path": name, "bytes": (path / name).stat().st_size, "sha256": sha256_file(path / name)}
             for name in ("state.json", "state/weights.pt")]  # fmt: skip
    (path / "manifest.json").write_text(json.dumps({"schema": 1, "step": step, "files": files}))
    return path


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "state" / "weights.pt").read_bytes())
    data[100] ^= 4
    (path / "state" / "weights.pt").write_bytes(data)


def truncate(path: Path) -> None:
    (path / "state" / "weights.pt").write_bytes(b"short")


def lose_a_file(path: Path) -> None:
    (path / "state" / "weights.pt").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def garble_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, lose_a_file, lose_the_manifest, garble_the_manifest])
def test_newest_valid_skips_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object) -> None:
    make(tmp_path, 10)
    newest = make(tmp_path, 20)
    (tmp_path / ".step-00000030.tmp").mkdir()  # a save that was killed
    found = checkpoints.newest_valid(tmp_path)
    assert found is not None
    assert found.step == 20
    damage(newest)  # type: ignore[operator]
    found = checkpoints.newest_valid(tmp_path)
    assert found is not None
    assert found.step == 10
    assert f"{newest} is damaged" in capsys.readouterr().err


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoints.newest_valid(tmp_path / "nowhere") is None
    assert checkpoints.newest_valid(tmp_path) is None


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 5, 30, 200):
        make(tmp_path, step)
    checkpoints.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000030", "step-00000200"]
