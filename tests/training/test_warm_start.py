"""A training that begins with another's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.convert.training_checkpoint import trainable_state
from atelier.convert.weights import of_safetensors
from atelier.errors import ConfigError, DataError
from atelier.training.callbacks import Callback
from atelier.training.partial_start import read_start
from atelier.training.run import TrainingRun
from atelier.training.warm_start import start_from
from tests.training.toy import StopAt, ToyObjective

SHORT: dict[str, Any] = {"steps": 6, "log_every": 1, "warmup_steps": 0, "checkpoint_every_steps": None}


class First(Callback):
    """Keeps the trained weights as they are before the first step of this process."""

    weights: dict[str, torch.Tensor]

    def on_start(self, run: TrainingRun) -> None:
        self.weights = {name: value.clone() for name, value in run.objective.trainable_state(run.model).items()}


@pytest.fixture
def adapter(one_rank: Any, tmp_path: Path) -> Path:
    """What a first stage learned."""
    one_rank(tmp_path / "first", **SHORT)
    save_file(trainable_state(tmp_path / "first" / "checkpoint"), tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_it_begins_with_those_weights(one_rank: Any, tmp_path: Path, adapter: Path, zero_stage: int) -> None:
    """At a learning rate of 0 they are what comes out; the gate alone has a rate of its own."""
    one_rank(tmp_path / "second", adapter=adapter, zero_stage=zero_stage, lr=0.0, **SHORT | {"seed": 7})
    expected, ended = load_file(adapter), trainable_state(tmp_path / "second" / "checkpoint")
    assert ended.keys() == expected.keys()
    assert {name for name in expected if not torch.equal(ended[name], expected[name])} == {"gate"}


def test_it_trains_on(one_rank: Any, tmp_path: Path, adapter: Path) -> None:
    first = First()
    one_rank(tmp_path / "second", callbacks=[first], adapter=adapter, **SHORT | {"seed": 7})
    expected, ended = load_file(adapter), trainable_state(tmp_path / "second" / "checkpoint")
    assert all(torch.equal(first.weights[name], expected[name]) for name in expected)
    assert not any(torch.equal(ended[name], expected[name]) for name in expected)


def test_a_resumed_training_goes_on_from_its_checkpoint_not_from_the_adapter(
    one_rank: Any, tmp_path: Path, adapter: Path
) -> None:
    one_rank(tmp_path / "whole", adapter=adapter, **SHORT)
    assert one_rank(tmp_path / "part", callbacks=[StopAt(3)], adapter=adapter, **SHORT).outcome == "preempted"
    account = (tmp_path / "part" / "start.json").read_bytes()
    (tmp_path / "part" / "start.json").unlink()  # on another machine
    adapter.unlink()
    assert one_rank(tmp_path / "part", adapter=adapter, **SHORT).outcome == "complete"
    whole, part = (trainable_state(tmp_path / name / "checkpoint") for name in ("whole", "part"))
    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    assert (tmp_path / "part" / "start.json").read_bytes() == account, "it comes along in the checkpoint"
    assert read_start(tmp_path / "part" / "start.json").share == 1.0


def test_half_precision_is_read(tmp_path: Path) -> None:
    state = ToyObjective().trainable_state(ToyObjective().build())
    half = {name: torch.randn(value.shape).half() for name, value in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    start_from(state, of_safetensors(tmp_path / "half.safetensors"), "half")
    assert all(torch.equal(state[name], half[name].float()) for name in state)


def test_every_key_that_does_not_fit_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    model = ToyObjective().build()
    state = ToyObjective().trainable_state(model)
    before = {name: value.clone() for name, value in state.items()}
    given = {name: torch.zeros_like(value) for name, value in state.items()}
    del given["gate"]
    given["adapter.0.weight"] = torch.zeros(2, 2)
    given["stranger"] = torch.zeros(1)
    save_file(given, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"1 missing key: gate; 1 unknown key: stranger; 1 misshapen key: adapter\.0"):
        start_from(state, of_safetensors(tmp_path / "a.safetensors"), "a")
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_a_damaged_file_and_one_that_is_not_finite_are_named(tmp_path: Path) -> None:
    state = ToyObjective().trainable_state(ToyObjective().build())
    given = {name: value.clone() for name, value in state.items()}
    given["gate"].fill_(torch.nan)
    save_file(given, tmp_path / "nan.safetensors")
    with pytest.raises(DataError, match=r"nan\.safetensors is not finite in 1 broken key: gate"):
        start_from(state, of_safetensors(tmp_path / "nan.safetensors"), "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "nan.safetensors").read_bytes()[:-8])
    with pytest.raises(DataError, match=r"cut\.safetensors is no whole safetensors file"):
        start_from(state, of_safetensors(tmp_path / "cut.safetensors"), "cut")
