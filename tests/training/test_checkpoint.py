"""Checkpoint folders that were damaged in every way are skipped, and named."""

import json
from pathlib import Path

import pytest
import torch

from atelier.storage.digest import sha256_file
from atelier.training import checkpoint as checkpoints
from atelier.training.masters import Fragment
from atelier.training.parts import Parts, write_part
from atelier.training.retention import Retention
from atelier.training.runtime import Ranks
from atelier.training.saver import find_newest
from atelier.training.series import LocalSeries

ALONE = Ranks(0, 1, torch.device("cpu"))


def make(folder: Path, step: int, loss: float = 1.0) -> Path:
    """A checkpoint with one rank's file, as a save leaves it."""
    path = folder / checkpoints.folder_name(step)
    scratch = checkpoints.scratch_of(path)
    scratch.mkdir(parents=True)
    weight = torch.arange(6.0) + step
    entry = write_part(scratch / "rank-00000.safetensors", [Fragment("layer", 0, {"weight": weight})])
    checkpoints.publish(path, checkpoints.manifest_of(step, [entry], {"metrics": {"loss": loss}}))
    return path


def newest(folder: Path) -> int | None:
    found = find_newest(LocalSeries(folder), ALONE, lambda checkpoint: False)
    return found.step if found else None


def flip_a_bit(path: Path) -> None:
    file = path / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)


def truncate(path: Path) -> None:
    file = path / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(path: Path) -> None:
    (path / "rank-00000.safetensors").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def garble_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


def name_a_file_elsewhere(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][0]["path"] = "../../etc/passwd"
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = [flip_a_bit, truncate, lose_a_file, lose_the_manifest, garble_the_manifest, name_a_file_elsewhere]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    make(tmp_path, 10)
    last = make(tmp_path, 20)
    (tmp_path / ".step-00000030.tmp").mkdir()  # a save that was killed
    assert newest(tmp_path) == 20
    damage(last)  # type: ignore[operator]
    assert newest(tmp_path) == 10
    assert f"{last} is damaged" in capsys.readouterr().err


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") is None
    assert newest(tmp_path) is None


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 5, 30, 200):
        make(tmp_path, step)
    Retention(2).apply(LocalSeries(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000030", "step-00000200"]


@pytest.mark.parametrize(("mode", "best"), [("min", 5), ("max", 30)])
def test_the_best_stays_too(tmp_path: Path, mode: str, best: int) -> None:
    for step, loss in ((1, 0.5), (5, 0.2), (30, 0.9), (200, 0.4)):
        make(tmp_path, step, loss)
    Retention(1, "loss", mode).apply(LocalSeries(tmp_path))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{best:08d}", "step-00000200"]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_of_later_steps_do_not_push_the_new_one_out(tmp_path: Path, keep: int) -> None:
    """As after a resume from step 10 because the two later ones were damaged."""
    for step in (10, 30, 40):
        make(tmp_path, step)
    flip_a_bit(tmp_path / "step-00000030")
    flip_a_bit(tmp_path / "step-00000040")
    assert newest(tmp_path) == 10
    make(tmp_path, 20)
    Retention(keep).apply(LocalSeries(tmp_path), 20)
    assert newest(tmp_path) == 20
    assert LocalSeries(tmp_path).steps() == [40, 30, 20, 10][: 2 + keep]


def test_any_range_of_a_parameter_is_read(tmp_path: Path) -> None:
    """Three ranks hold uneven runs of one parameter; every range comes back as if it were one tensor."""
    whole = torch.randn(23)
    names = []
    for rank, (begin, end) in enumerate([(0, 7), (7, 20), (20, 23)]):
        fragment = Fragment("layer.weight", begin, {"weight": whole[begin:end].clone(), "ema": -whole[begin:end]})
        entry = write_part(tmp_path / f"rank-{rank:05d}.safetensors", [fragment])
        assert entry["sha256"] == sha256_file(tmp_path / entry["path"])
        assert entry["bytes"] == (tmp_path / entry["path"]).stat().st_size
        names.append(entry["path"])
    with Parts(tmp_path, names) as parts:
        assert torch.equal(parts.whole("ema", "layer.weight", [23]), -whole)
        for begin in range(23):
            for end in range(begin + 1, 24):
                out = torch.empty(end - begin)
                for offset, values in parts.blocks("weight", "layer.weight", begin, end - begin):
                    out[offset : offset + len(values)] = values
                assert torch.equal(out, whole[begin:end])
    with Parts(tmp_path, [names[0], names[2]]) as parts, pytest.raises(Exception, match="elements 7 to 23"):
        parts.whole("weight", "layer.weight", [23])
