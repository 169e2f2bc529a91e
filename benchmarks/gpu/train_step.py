"""What a training step costs at full size, and what each optimisation brought.

    python -m benchmarks.gpu.train_step --part sd14-512      # also sdxl-512, sdxl-1024, crossflow-…, loss
    python -m benchmarks.gpu.train_step --part sdxl-512 --tiny   # the same on a CPU in seconds: does it run?

GLIGEN's layers on a frozen SD1.4 or SDXL UNet, or a whole CrossFlow (``benchmarks/gpu/crossflow_step.py``), random
weights (speed does not depend on them), synthetic samples of the shards' shapes copied from pinned memory at every
step; no dataset, no network. One process, one GPU, a plain loop: DeepSpeed's own cost is measured elsewhere
(``gligen_train_vs_plain_loop``).

A line of JSON for each rung of the ladder; rungs add up, and all of a part are measured in one process, one after the
other: ``times_previous`` and ``times_first`` are ratios of img/s within the run. MFU counts 2× a frozen base's forward
pass and 3× that of what is trained, whatever was computed besides. Each part takes less than 10 minutes; ``--rungs``
takes a few of them. ``loss`` compares 200 steps in bf16 with fp32 on the laptop twin.

Bars on one H200: at least 40 % MFU, that is about 150 img/s (SD1.4 at 512), 62 (SDXL at 512), 15 (SDXL at 1024), for
CrossFlow 171 (256 CLIP DiMR), 141 (512 CLIP DiMR), 72 (512 T5 DiT).
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from atelier.models.flops import adapter_training_flops
from atelier.models.grounded_unet import adapter_parameters, blocks
from atelier.training.devices import device_peak
from atelier.training.protocol import Draws
from benchmarks.gpu import models

LOSS_STEPS = 200
_WINDOW = 20


@dataclass(frozen=True)
class Rung:
    """How a step is computed."""

    name: str
    batch: int
    encoders: bool = True
    bf16: bool = False
    channels_last: bool = False
    flash: bool = False
    fused: bool = False
    compiled: bool = False


AnyRung = TypeVar("AnyRung", bound=Rung)


def ladder(batches: Sequence[int]) -> Iterator[Rung]:
    """The rungs of a GLIGEN."""
    changes = (
        ("precomputed embeddings", {"encoders": False}),
        ("bf16 weights, fp32 masters", {"bf16": True}),
        ("channels_last", {"channels_last": True}),
        ("flash attention", {"flash": True}),
        ("fused optimizer", {"fused": True}),
        ("regional compile", {"compiled": True}),
    )
    return climb(Rung("fp32, math attention, encoders in the loop", batches[0]), changes, batches[1:])


def climb(rung: AnyRung, changes: Iterable[tuple[str, dict[str, Any]]], batches: Iterable[int]) -> Iterator[AnyRung]:
    """Each rung is the one before with one thing more, and at last with larger batches."""
    yield rung
    for name, change in (*changes, *((f"batch {batch}", {"batch": batch}) for batch in batches)):
        rung = replace(rung, name=name, **change)
        yield rung


class Optimizer:
    """AdamW over fp32 masters of the trained weights, as DeepSpeed's bf16 mode keeps them."""

    def __init__(self, weights: list[nn.Parameter], fused: bool, lr: float = 1e-4) -> None:
        self.weights = weights
        self.apart = weights[0].dtype != torch.float32
        self.masters = [weight.detach().float().requires_grad_() for weight in weights] if self.apart else weights
        self.adam = torch.optim.AdamW(self.masters, lr=lr, weight_decay=0.0, fused=fused)

    def step(self) -> None:
        """Clips, updates, and rounds the masters to the weights."""
        if self.apart:
            for master, weight in zip(self.masters, self.weights, strict=True):
                master.grad = None if weight.grad is None else weight.grad.float()
                weight.grad = None
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        if self.apart:
            with torch.no_grad():
                torch._foreach_copy_([weight.data for weight in self.weights], [m.data for m in self.masters])


class Step:
    """One training step, built as a rung says."""

    def __init__(
        self, size: models.Size, rung: Rung, device: torch.device, lr: float = 1e-4, tiny: bool = False
    ) -> None:
        self.rung, self.device = rung, device
        dtype = torch.bfloat16 if rung.bf16 else torch.float32
        set_attention(rung.flash)
        self.unet = models.build_unet(size, device).to(dtype)
        if rung.channels_last:
            self.unet = self.unet.to(memory_format=torch.channels_last)
        self.encode = models.build_encoders(size, device, dtype) if rung.encoders else None
        self.optimizer = Optimizer(list(adapter_parameters(self.unet).values()), rung.fused, lr)
        if rung.compiled:
            compile_regions(self.unet, backend="eager" if tiny else "inductor")
        self.schedule = models.noise_schedule()
        self.batch = models.host_batch(size, rung.batch, pinned=device.type == "cuda")
        self.done = 0

    def __call__(self, host: dict[str, Tensor] | None = None, seed: int = 0) -> Tensor:
        """Returns the loss, not yet waited for."""
        batch = {name: value.to(self.device, non_blocking=True) for name, value in (host or self.batch).items()
                 if self.encode is not None or name not in ("pictures", "numbers")}  # fmt: skip
        if self.encode is not None:
            batch["latents"], batch["prompt"] = self.encode(batch["pictures"], batch["numbers"])
        if self.rung.channels_last:
            batch["latents"] = batch["latents"].contiguous(memory_format=torch.channels_last)
        rows = len(batch["latents"])
        draws = Draws(seed, [(0, self.done * rows + row) for row in range(rows)], self.device)
        value = models.loss(self.unet, self.schedule, batch, draws)
        value.backward()
        self.optimizer.step()
        self.done += 1
        return value.detach()


def set_attention(flash: bool) -> None:
    """Which kernels scaled-dot-product attention may use; without ``flash`` the plain one alone."""
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(flash)
    torch.backends.cuda.enable_cudnn_sdp(flash)
    torch.backends.cuda.enable_math_sdp(True)


def compile_regions(unet: nn.Module, backend: str) -> None:
    """Compiles every transformer and residual block in place: equal blocks share their code, so it takes a minute."""
    torch._dynamo.config.recompile_limit = 64  # one for each width and height of the feature maps
    for _, block in blocks(unet):  # type: ignore[arg-type]
        block.compile(backend=backend)
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.compile(backend=backend)


def measure(step: "Steps", seconds: float) -> tuple[float, float]:
    """Median seconds of a step, and the last loss; three steps to warm up."""
    for _ in range(3):
        last = step()
    wait(step.device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < seconds and len(times) < 50):
        before = time.perf_counter()
        last = step()
        wait(step.device)
        times.append(time.perf_counter() - before)
    return statistics.median(times), float(last)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> float | None:
    """Greatest memory that tensors held since the last reset; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


@dataclass(frozen=True)
class Part:
    """What a ladder is climbed with: its rungs, a rung's step, FLOPs of a sample, and img/s that are the bar."""

    rungs: Iterable[Any]
    step: Callable[[Any], "Steps"]
    flops: float
    bar: float | None


class Steps(Protocol):
    """A training step on a device; called, it returns the loss, not yet waited for."""

    device: torch.device

    def __call__(self) -> Tensor: ...


def part_of(name: str, device: torch.device, tiny: bool) -> Part:
    """A part by its name."""
    if name.startswith("crossflow"):
        from benchmarks.gpu import crossflow_step as crossflow

        model = crossflow.SIZES[name]
        batches, bar = ((4, 8), None) if tiny else (model.batches, model.bar)
        return Part(
            crossflow.ladder(batches),
            lambda rung: crossflow.Step(model, rung, device, tiny=tiny),
            crossflow.flops_of(model, tiny),
            bar,
        )
    size = models.tiny(name) if tiny else models.SIZES[name]
    flops = adapter_training_flops(size.config, size.latent, size.boxes, size.tokens)
    return Part(ladder(size.batches), lambda rung: Step(size, rung, device, tiny=tiny), flops, size.bar)


def parts() -> list[str]:
    """The ladders' names."""
    from benchmarks.gpu import crossflow_step as crossflow

    return [*models.SIZES, *crossflow.SIZES]


def run_ladder(name: str, device: torch.device, seconds: float, tiny: bool, only: str) -> bool:
    """Prints a line a rung and one for the bar; returns whether that was reached (True where there is none)."""
    part = part_of(name, device, tiny)
    flops = part.flops
    first = previous = best = 0.0
    for number, rung in enumerate(part.rungs):
        if only and str(number) not in only.split(","):
            continue
        line: dict[str, Any] = {"part": name, "rung": number, "adds": rung.name, "batch": rung.batch}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            taken, last = measure(part.step(rung), seconds)
        except torch.cuda.OutOfMemoryError:
            print(json.dumps(line | {"out_of_memory": True}), flush=True)
        else:
            rate = rung.batch / taken
            first, previous, best = first or rate, previous or rate, max(best, rate)
            peak = device_peak(device, "bf16" if rung.bf16 else "fp32")
            gib = peak_gib(device)
            line |= {
                "img_per_s": round(rate, 3),
                "step_ms": round(1000 * taken, 2),
                "tflops_per_s": round(rate * flops / 1e12, 4),
                "mfu": round(rate * flops / peak, 4) if peak else None,
                "peak_gib": round(gib, 2) if gib is not None else None,
                "times_previous": round(rate / previous, 3),
                "times_first": round(rate / first, 3),
                "loss": round(last, 4),
            }
            previous = rate
            print(json.dumps(line), flush=True)
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    ok = part.bar is None or best >= part.bar
    print(json.dumps({"part": name, "best_img_per_s": round(best, 3), "bar": part.bar, "ok": ok,
                      "tflop_per_img": round(flops / 1e12, 6), "device": device_name(device)}), flush=True)  # fmt: skip
    return ok


def run_loss(device: torch.device, steps: int) -> bool:
    """Compares the loss curves of bf16 and fp32: same weights, samples and draws.

    The noise is what another stream of draws does to the fp32 curve; both are compared as moving averages.
    """
    size = models.tiny("sdxl-512")
    rows, stock = 8, 8
    hosts = [models.host_batch(size, rows, seed) for seed in range(stock)]

    def curve(bf16: bool, seed: int) -> Tensor:
        step = Step(size, Rung("loss", rows, encoders=False, bf16=bf16, flash=device.type == "cuda"), device, lr=1e-3)
        values = torch.stack([step(hosts[number % stock], seed) for number in range(steps)]).double().cpu()
        return values.unfold(0, min(_WINDOW, steps // 2), 1).mean(-1)

    exact, other, rounded = curve(False, 0), curve(False, 1), curve(True, 0)
    gap, noise = (float((curve - exact).abs().max()) for curve in (rounded, other))
    ok = gap <= noise
    print(json.dumps({"part": "loss", "steps": steps, "fp32_first": round(float(exact[0]), 5),
                      "fp32_last": round(float(exact[-1]), 5), "bf16_last": round(float(rounded[-1]), 5),
                      "max_gap": round(gap, 6), "noise": round(noise, 6), "ok": ok,
                      "device": device_name(device)}), flush=True)  # fmt: skip
    return ok


def device_name(device: torch.device) -> str:
    """For the reader of the line."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 when a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.train_step", description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=[*parts(), "loss"], required=True)
    parser.add_argument("--tiny", action="store_true", help="the laptop twin's sizes, on a CPU where there is no GPU")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured a rung, after its warm-up")
    parser.add_argument("--rungs", default="", help="numbers of the rungs to take, e.g. 0,2,6")
    parser.add_argument("--steps", type=int, default=LOSS_STEPS, help="of the loss curve")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not given.tiny:
        parser.error("there is no GPU here; --tiny tries the script on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.part == "loss":
        return 0 if run_loss(device, given.steps) else 1
    return 0 if run_ladder(given.part, device, given.seconds, given.tiny, given.rungs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
