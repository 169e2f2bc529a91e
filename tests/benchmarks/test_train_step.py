"""The GPU benchmark runs from end to end at the laptop's sizes."""

import json

import pytest
import torch

from atelier.training.devices import peak_flops
from benchmarks.gpu import crossflow_step, models, train_step


@pytest.fixture(autouse=True)
def attention_as_it_was() -> object:
    kinds = ("flash", "mem_efficient", "cudnn", "math")
    before = {kind: getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in kinds}
    yield
    for kind, enabled in before.items():
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(enabled)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["sdxl-1024", pytest.param("sd14-512", marks=pytest.mark.slow)])
def test_every_rung_of_the_ladder(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_step.main(["--part", part, "--tiny", "--seconds", "0"]) == 0
    *rungs, last = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [rung["rung"] for rung in rungs] == list(range(8))
    assert [rung["batch"] for rung in rungs] == [2] * 7 + [4]
    for rung in rungs:
        assert rung["img_per_s"] > 0
        assert rung["mfu"] is None, "a CPU has no stated peak"
        assert 0 < rung["loss"] < 10
    # The same numbers in another order of operations, from "precomputed embeddings" on.
    exact, *others = [rung["loss"] for rung in rungs[1:7]]
    assert others == pytest.approx([exact] * 5, rel=0.3)
    assert last["ok"] is True
    assert last["best_img_per_s"] == max(rung["img_per_s"] for rung in rungs)


def test_a_few_rungs(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_step.main(["--part", "sdxl-512", "--tiny", "--seconds", "0", "--rungs", "1,5"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line.get("rung") for line in lines] == [1, 5, None]


@pytest.mark.parametrize(
    ("part", "rungs"),
    [
        ("crossflow-512-t5-dit", [0, 1, 4]),
        *(pytest.param(part, [0, 1, 5, 6, 7], marks=pytest.mark.slow) for part in crossflow_step.SIZES),
    ],
)
def test_crossflows_ladder(part: str, rungs: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """From the published way on, which encodes in the loop and recomputes blocks."""
    only = ",".join(map(str, rungs))
    assert train_step.main(["--part", part, "--tiny", "--seconds", "0", "--rungs", only]) == 0
    *lines, last = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["rung"] for line in lines] == rungs
    exact, *others = [line["loss"] for line in lines if line["rung"] in range(1, 7)]
    assert others == pytest.approx([exact] * len(others), rel=0.05), "the same numbers in bf16, however computed"
    assert last["ok"] is True


def test_crossflows_bars_are_40_percent_of_the_peak() -> None:
    peak = peak_flops("NVIDIA H200", "bf16")
    assert peak is not None
    for size in crossflow_step.SIZES.values():
        assert size.bar == pytest.approx(0.4 * peak / crossflow_step.flops_of(size, tiny=False), rel=0.01)


def test_loss_curves_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    train_step.main(["--part", "loss", "--tiny", "--steps", "12"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["steps"] == 12
    assert 0 < line["max_gap"] < 0.1 * line["fp32_last"], line
    assert line["noise"] > 0


def test_masters_take_the_steps_that_bf16_would_lose() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = train_step.Optimizer([weight], fused=False, lr=1e-4)
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    # A step of 1e-4 is far below bf16's spacing just under 1 (0.0039), fifty of them are not.
    moved = float(weight.detach().float()[0])
    assert moved == pytest.approx(1 - 50e-4, abs=2e-3)
    assert moved < 1


def test_published_sizes_have_the_published_counts() -> None:
    counts = {}
    for part, size in models.SIZES.items():
        unet = models.build_unet(size, torch.device("meta"))
        counts[part] = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
        assert sum(text["hidden_size"] for text in size.text) == size.config["cross_attention_dim"]
    assert counts == {"sd14-512": 209_102_240, "sdxl-512": 1_812_438_988, "sdxl-1024": 1_812_438_988}
