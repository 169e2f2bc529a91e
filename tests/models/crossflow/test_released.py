"""The released configurations have exactly the parameters of the released checkpoints."""

import functools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from atelier.models.crossflow.configs import RELEASED
from atelier.models.crossflow.flops import flow_flops, text_flops, tower_flops
from atelier.models.crossflow.model import CrossFlow

GOLDEN = Path(__file__).parents[2] / "parity/golden/crossflow"


@functools.cache
def on_meta(name: str) -> CrossFlow:
    with torch.device("meta"):
        return CrossFlow(RELEASED[name])


@pytest.mark.parametrize("name", RELEASED)
def test_counts(name: str) -> None:
    expected = json.loads((GOLDEN / "param_counts.json").read_text())[f"t2i_{name}"]
    model = on_meta(name)
    shapes = model.released_state()
    groups: Counter[str] = Counter()
    for key, tensor in shapes.items():
        parts = key.split(".")
        groups[".".join(parts[:2]) if parts[0] == "stages" else parts[0]] += tensor.numel()
    assert groups == expected["groups"]
    assert (sum(groups.values()), len(shapes)) == (expected["total"], expected["keys"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected["trainable"]
    kept_whole = [t.numel() for key, t in shapes.items() if key.rpartition(".")[2].startswith("nodecay_")]
    assert sum(kept_whole) == expected["nodecay"]
    assert not list(model.buffers())


@pytest.mark.parametrize("name", RELEASED)
def test_keys(name: str) -> None:
    """The lists write layer numbers as N, with how many there are and the first one's shape."""
    expected = dict(
        re.fullmatch(r"(\S+) (x\d+ \(.*\))", line).groups()  # type: ignore[union-attr]
        for line in (GOLDEN / f"keys_t2i_{name}.txt").read_text().splitlines()
    )
    found: dict[str, tuple[int, str]] = {}
    for key, tensor in on_meta(name).released_state().items():
        pattern = re.sub(r"(?<=stages\.|blocks\.|layers\.|denses\.)\d+", "N", key)
        count, shape = found.get(pattern, (0, str(tuple(tensor.shape))))
        found[pattern] = (count + 1, shape)
    assert {pattern: f"x{count} {shape}" for pattern, (count, shape) in found.items()} == expected


def test_published_costs() -> None:
    """581 and 1450 GFLOP, as measured of the released networks with attention's two products left out."""
    attention = 65 * 4 * 257**2 * 1024
    assert round((flow_flops(RELEASED["256px_clip_dimr"]) - attention) / 1e9) == 581
    attention = 36 * 4 * 1024**2 * 1280
    assert round((flow_flops(RELEASED["512px_t5_dit"]) - attention) / 1e9) == 1450


@pytest.mark.parametrize("name", ["256px_clip_dimr", "512px_t5_dit"])
def test_flops_are_those_that_torch_counts(name: str) -> None:
    model, config = on_meta(name), RELEASED[name]
    width = config.text["width"]
    with torch.device("meta"), torch.no_grad():
        given = {
            flow_flops: lambda: model.flow(
                torch.zeros(1, *config.latent_shape), torch.zeros(1), torch.zeros(1, dtype=torch.bool)
            ),
            text_flops: lambda: model.context_encoder(torch.zeros(1, 77, width), torch.ones(1, 77)),
            tower_flops: lambda: model.image_latents(torch.zeros(1, 3, 256, 256)),
        }
        for formula, call in given.items():
            with FlopCounterMode(display=False) as counter:
                call()
            assert formula(config) == pytest.approx(counter.get_total_flops(), rel=1e-6), formula.__name__
