"""What fits of another model is taken over, everything else is named."""

import json
from pathlib import Path

import pytest
import torch

from atelier.convert.weights import of_state
from atelier.errors import ConfigError, DataError
from atelier.models.crossflow.configs import CrossFlowConfig
from atelier.training.partial_start import read_start, start_partly
from tests.models.crossflow.tiny import DIMR, TEXT, made


def test_another_language_model_keeps_the_flow(tmp_path: Path) -> None:
    """The chain's step from CLIP to T5: the flow is taken, the text encoder's own width is not."""
    first = made(DIMR, seed=1).released_state()
    wider = CrossFlowConfig(DIMR.backbone, DIMR.flow, TEXT | {"width": 48}, DIMR.latent_shape, None)
    model = made(wider, seed=2)
    state = model.released_state()
    found = start_partly(state, of_state(first), "the first")
    flow = {name for name in state if name.startswith("stages.")}
    assert flow < set(found.taken)
    assert all(torch.equal(model.released_state()[name], first[name]) for name in found.taken)
    assert "context_encoder.layers.0.attn.W_Q.weight (32, 32) for (48, 48)" in found.misshapen
    assert all(name.startswith(("open_clip.", "open_clip_output.")) for name in found.unused)
    assert not found.fresh
    accounted = len(found.taken) + len(found.misshapen) + len(found.fresh)
    assert accounted == len(state)
    found.write(tmp_path)
    assert set(json.loads((tmp_path / "start.json").read_text())["taken"]) == set(found.taken)
    assert found.lines()[0].endswith("% of the numbers taken over from the first")
    assert read_start(tmp_path / "start.json") == found


def test_what_is_refused() -> None:
    state = {"a": torch.zeros(2)}
    with pytest.raises(ConfigError, match="nothing in common"):
        start_partly(state, of_state({"b": torch.zeros(2)}), "it")
    with pytest.raises(ConfigError, match="of its 1 keys 1 have a name that is known here, 1 the shape too"):
        start_partly({"a": torch.zeros(2), "b": torch.zeros(5000)}, of_state({"a": torch.zeros(2)}), "it")
    with pytest.raises(DataError, match="not finite in 1 broken key: a"):
        start_partly(state, of_state({"a": torch.tensor([1.0, float("nan")])}), "it")
