"""A released model as a checkpoint that a training starts from."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atelier.convert.conversion import convert
from atelier.errors import ConfigError
from atelier.models.grounded_unet import is_adapter_key, load_adapter
from atelier.training.launcher import LocalLauncher
from atelier.training.protocol import Draws
from tests.convert import start_worker, tiny
from tests.recipes.twin import write_twin

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def adapter_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if is_adapter_key(name)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_adapter_to_checkpoint_and_back(family: str, tmp_path: Path) -> None:
    adapter = adapter_of(tiny.state(family))
    save_file(adapter, tmp_path / "adapter.safetensors")
    made = convert(tmp_path / "adapter.safetensors", tmp_path / "start", "checkpoint", max_shard_size="100KB")
    assert (made.form, made.to, made.frozen) == ("adapter", "checkpoint", 0)
    assert made.trained == sum(tensor.numel() for tensor in adapter.values())
    assert len(list((tmp_path / "start/step-00000000").glob("rank-*.safetensors"))) > 1
    back = convert(tmp_path / "start", tmp_path / "back.safetensors")
    assert (back.form, back.trained) == ("checkpoint", made.trained)
    assert_same(load_file(tmp_path / "back.safetensors"), adapter)


def test_every_form_to_checkpoint(tmp_path: Path) -> None:
    state = tiny.write_unet(tmp_path / "unet", "SD1")
    convert(tmp_path / "unet", tmp_path / "original.pth")
    for source in ("unet", "original.pth"):
        target = tmp_path / f"from-{source}"
        convert(tmp_path / source, target, "checkpoint")
        convert(target, tmp_path / f"{source}.safetensors")
        assert_same(load_file(tmp_path / f"{source}.safetensors"), adapter_of(state))


def test_half_precision_becomes_fp32_masters(tmp_path: Path) -> None:
    adapter = {name: tensor.half() for name, tensor in adapter_of(tiny.state("SD1")).items()}
    save_file(adapter, tmp_path / "adapter.safetensors")
    convert(tmp_path / "adapter.safetensors", tmp_path / "start", "checkpoint")
    convert(tmp_path / "start", tmp_path / "back.safetensors")
    assert_same(load_file(tmp_path / "back.safetensors"), {name: t.float() for name, t in adapter.items()})


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    adapter = adapter_of(tiny.state("SD1"))
    missing = next(iter(adapter))
    save_file({name: t for name, t in adapter.items() if name != missing}, tmp_path / "lacking.safetensors")
    with pytest.raises(ConfigError, match=missing):
        convert(tmp_path / "lacking.safetensors", tmp_path / "start", "checkpoint")
    save_file(adapter, tmp_path / "adapter.safetensors")
    tiny.write_base(tmp_path / "base", "SD2")
    with pytest.raises(ConfigError, match="does not fit the UNet"):
        convert(tmp_path / "adapter.safetensors", tmp_path / "start", "checkpoint", base=tmp_path / "base")
    with pytest.raises(ConfigError, match="fp32 masters"):
        convert(tmp_path / "adapter.safetensors", tmp_path / "start", "checkpoint", dtype="bf16")
    assert not (tmp_path / "start").exists()


@pytest.mark.slow
def test_a_training_starts_from_it(tmp_path: Path) -> None:
    """Its first loss, over two ranks, is that of the converted model on the same samples and draws."""
    base = write_twin(tmp_path / "base")
    objective = start_worker.recipe().objective(base)
    torch.manual_seed(5)
    model = objective.build().train()
    adapter = {name: torch.randn_like(tensor) * 0.1 for name, tensor in objective.trainable_state(model).items()}
    load_adapter(model, adapter)
    samples = start_worker.Samples()
    batch = objective.collate([samples.sample(index) for index in range(len(samples))])
    seed = start_worker.recipe().config.train.seed
    with torch.no_grad():
        expected = objective.loss(model, batch, Draws(seed, [(0, index) for index in range(len(samples))]), 0.0)

    save_file(adapter, tmp_path / "adapter.safetensors")
    convert(tmp_path / "adapter.safetensors", tmp_path / "checkpoints", "checkpoint", base=base)
    paths = os.pathsep.join(str(path) for path in (ROOT / "src", ROOT, HERE))
    arguments = [str(base), str(tmp_path / "out"), str(tmp_path / "checkpoints")]
    LocalLauncher(environment={"PYTHONPATH": paths}).run("start_worker", arguments, 2, tmp_path / "logs")

    from atelier.training.engine import read_log, read_summary

    (line,) = read_log(tmp_path / "out")
    assert line["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
    assert read_summary(tmp_path / "out")["steps"] == 1
