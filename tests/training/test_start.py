"""A training that begins with weights from elsewhere is the training whose model was made with them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.convert.training_checkpoint import trainable_state
from atelier.errors import ConfigError, DataError
from atelier.training.engine import SCRATCH
from atelier.training.start import write_start
from tests.training.test_engine import SHORT, Watch, losses
from tests.training.toy import ToyObjective


class Moved(ToyObjective):
    """Starts with other weights than a fresh toy."""

    def build(self) -> torch.nn.Module:
        model = super().build()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.25
        return model


def start_of(objective: ToyObjective) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return objective.trainable_state(objective.build())


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_it_equals_a_model_made_so(one_rank: Any, tmp_path: Path, zero_stage: int) -> None:
    made, started = Watch(), Watch()
    one_rank(tmp_path / "made", Moved(), callbacks=[made], zero_stage=zero_stage, **SHORT)
    start = start_of(Moved())
    names = sorted(start)
    # Several files, none of them a rank's.
    pieces = [{name: start[name] for name in names[:2]}, {name: start[name] for name in names[2:]}]
    write_start(tmp_path / "started" / SCRATCH, pieces)
    one_rank(tmp_path / "started", callbacks=[started], zero_stage=zero_stage, **SHORT)
    assert all(torch.equal(started.weights[0][name], tensor) for name, tensor in start.items())
    assert losses(tmp_path / "started") == losses(tmp_path / "made")
    for average in (False, True):
        ends = [trainable_state(tmp_path / name / "checkpoint", average) for name in ("made", "started")]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in names)


def test_other_parameters_are_refused(one_rank: Any, tmp_path: Path) -> None:
    start = start_of(Moved())
    del start["gate"]
    write_start(tmp_path / SCRATCH, [start])
    with pytest.raises(ConfigError, match="other trainable parameters"):
        one_rank(tmp_path, **SHORT)


def test_moments_of_some_parameters_alone_are_no_fresh_start(tmp_path: Path) -> None:
    from atelier.training.masters import Fragment
    from atelier.training.parts import Parts, put_back, write_part

    def fragment(name: str, *fields: str) -> Fragment:
        return Fragment(name, 0, {field: torch.ones(3) for field in fields})

    everything = ("weight", "exp_avg", "exp_avg_sq")
    write_part(tmp_path / "rank-00000.safetensors", [fragment("a", *everything), fragment("b", "weight")])
    with Parts(tmp_path, ["rank-00000.safetensors"]) as parts, pytest.raises(DataError, match="exp_avg/b"):
        put_back([fragment("a", *everything), fragment("b", *everything)], parts)
