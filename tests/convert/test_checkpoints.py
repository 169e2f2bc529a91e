"""Checkpoints of trainings: DeepSpeed's own, saved by DeepSpeed in two processes, and ours."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atelier.convert.conversion import convert
from atelier.convert.zero_checkpoint import zero_trainable_state
from atelier.errors import DataError
from atelier.models.grounded_unet import is_adapter_key
from atelier.training.checkpoint import manifest_of, publish, scratch_of
from atelier.training.launcher import LocalLauncher
from atelier.training.masters import Fragment
from atelier.training.parts import part_name, write_part
from tests.convert import tiny

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def train(folder: Path, stage: int, precision: str) -> None:
    paths = os.pathsep.join(str(path) for path in (ROOT / "src", ROOT, HERE))
    launcher = LocalLauncher(environment={"PYTHONPATH": paths})
    launcher.run("deepspeed_worker", [str(folder), str(stage), precision], 2, folder / "logs")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (2, "fp32"), (1, "bf16"), (2, "bf16")])
def test_deepspeeds_own_checkpoint(stage: int, precision: str, tmp_path: Path) -> None:
    train(tmp_path, stage, precision)
    truth = load_file(tmp_path / "truth.safetensors")
    assert len(truth) > 20
    made = convert(tmp_path / "saved", tmp_path / "adapter.safetensors")
    assert made.form == "deepspeed"
    found = load_file(tmp_path / "adapter.safetensors")
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        assert torch.equal(found[name], tensor), name
    with pytest.raises(DataError, match="holds no moving average"):
        zero_trainable_state(tmp_path / "saved/step2", average=True)
    next((tmp_path / "saved/step2").glob("*zero_pp_rank_1_*")).unlink()
    with pytest.raises(DataError, match="lacks elements of"):
        zero_trainable_state(tmp_path / "saved/step2")


def write_checkpoint(folder: Path, names_from: str = "") -> dict[str, torch.Tensor]:
    """A checkpoint of our engine of two ranks, each of which holds half of every parameter."""
    state = {name: tensor for name, tensor in tiny.state("SD1").items() if is_adapter_key(name)}
    scratch_of(folder).mkdir(parents=True)
    files = []
    for rank in range(2):
        fragments = []
        for name, tensor in state.items():
            flat = tensor.reshape(-1)
            half = (flat.numel() + 1) // 2
            piece = flat[:half] if rank == 0 else flat[half:]
            if piece.numel():
                fields = {"weight": piece.clone(), "ema": piece + 1}
                fragments.append(Fragment(names_from + name, half * rank, fields))
        files.append(write_part(scratch_of(folder) / part_name(rank), fragments))
    shapes = {names_from + name: list(tensor.shape) for name, tensor in state.items()}
    publish(folder, manifest_of(12, files, {"parameters": shapes}))
    return state


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_our_checkpoint(prefix: str, tmp_path: Path) -> None:
    state = write_checkpoint(tmp_path / "training/step-00000012", prefix)
    base = tiny.write_base(tmp_path / "base", "SD1")
    made = convert(tmp_path / "training", tmp_path / "out", base=tmp_path / "base")
    assert (made.form, made.family, made.to) == ("checkpoint", "SD1", "diffusers")
    found = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    for name, tensor in (base | state).items():
        assert torch.equal(found[name], tensor), name
    convert(tmp_path / "training/step-00000012", tmp_path / "ema.safetensors", average=True)
    averaged = load_file(tmp_path / "ema.safetensors")
    assert averaged.keys() == state.keys()
    assert all(torch.equal(averaged[name], tensor + 1) for name, tensor in state.items())


def test_a_damaged_checkpoint_of_ours(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step-00000012")
    part = tmp_path / "step-00000012/rank-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="no whole checkpoint"):
        convert(tmp_path / "step-00000012", tmp_path / "a.safetensors")
