"""What a training holds in a GPU's memory, and the lowest ZeRO stage that fits. No torch: plans are made without it.

Sources: Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054), section 3 for mixed-precision Adam's 2 + 2 + 12 bytes a
parameter and section 5 for what each stage divides by the number of ranks; what DeepSpeed 0.19 adds to that (master
weights in fp32 trainings, fp32 gradients under bf16) was read off its tensors (tests/training/test_memory.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from atelier.training.config import Precision
from atelier.training.deepspeed_config import BUCKET_ELEMENTS

Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)

_MOST_GPUS = 4096


@dataclass(frozen=True)
class Workload:
    """What is trained on how many GPUs.

    Attributes:
        trainable, frozen: numbers of parameters.
        world: ranks, one a GPU.
        precision: of weights and arithmetic.
        ema: a moving average of the trained weights is kept (in fp32, sharded like Adam's moments).
        activation_bytes: of one sample, held between forward and backward.
        micro_batch: samples of one forward pass on one GPU.
        bucket_elements: of one communication bucket.
        gradient_bytes: a gradient's; None is what our settings make of the precision (``deepspeed_config``).
        checkpointed_share: of the activations that activation checkpointing would leave; an estimate (a transformer
            block keeps its input and little else).
    """

    trainable: int
    frozen: int = 0
    world: int = 1
    precision: Precision = "bf16"
    ema: bool = False
    activation_bytes: float = 0.0
    micro_batch: int = 1
    bucket_elements: int = BUCKET_ELEMENTS
    gradient_bytes: int | None = None
    checkpointed_share: float = 0.2


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the fullest moment of a step."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    buckets: float

    @property
    def total(self) -> float:
        """Their sum; the CUDA context and fragmentation are not in it (``choose_stage`` reserves for them)."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buckets

    def __str__(self) -> str:
        parts = {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "buckets": self.buckets,
        }
        return ", ".join(f"{name} {gigabytes(value)}" for name, value in parts.items() if value)


def memory(work: Workload, stage: Stage) -> Memory:
    """The memory of one GPU under a ZeRO stage.

    Stage 1 divides the optimizer's state by the number of ranks, stage 2 the gradients too, stage 3 the parameters
    too, frozen ones included.
    """
    weight = 4 if work.precision == "fp32" else 2
    gradient = work.gradient_bytes or (2 if work.precision == "fp16" else 4)
    # An fp32 training has master weights too (a flat copy of the shard) from stage 1 on.
    master = 4 if work.precision != "fp32" or stage >= 1 else 0
    state = master + 8 + (4 if work.ema else 0)  # Adam's two moments
    bucket = min(work.bucket_elements, work.trainable)
    gathered = 2 * min(work.bucket_elements, work.trainable + work.frozen) * weight  # the layer in use and the next
    return Memory(
        parameters=weight * (work.trainable + work.frozen) / (work.world if stage == 3 else 1),
        gradients=gradient * work.trainable / (work.world if stage >= 2 else 1),
        optimizer=state * work.trainable / (work.world if stage >= 1 else 1),
        activations=work.activation_bytes * work.micro_batch,
        # Two, so that one is filled while the other travels.
        buckets=(2 * bucket * gradient + (gathered if stage == 3 else 0)) if work.world > 1 else 0,
    )


@dataclass(frozen=True)
class StageChoice:
    """The lowest stage that fits, or None (then ``memory`` is the least there is); ``reason`` is for a person."""

    stage: Stage | None
    memory: Memory
    reason: str


def choose_stage(work: Workload, gpu_bytes: float, headroom: float = 0.08, reserve_bytes: float = 2e9) -> StageChoice:
    """The lowest ZeRO stage whose memory fits: each higher one communicates more or computes later.

    Stage 0 is for fp32 alone: in half precision DeepSpeed would add the gradients up in that precision, and the
    training's configuration refuses it.

    Args:
        gpu_bytes: of one GPU, e.g. 141e9.
        headroom: share left to the allocator's fragmentation.
        reserve_bytes: CUDA's context, cuDNN's and NCCL's workspaces.

    Returns:
        with stage None and, in the reason, what would fit: more GPUs, a smaller micro-batch, checkpointing.
    """
    usable = gpu_bytes * (1 - headroom) - reserve_bytes
    of = f"of {gigabytes(gpu_bytes)} ({gigabytes(usable)} usable)"
    tried = {stage: memory(work, stage) for stage in _possible(work)}
    for stage, need in tried.items():
        if need.total <= usable:
            lower = [f"ZeRO {below} would need {gigabytes(tried[below].total)}" for below in tried if below < stage]
            because = f"; {', '.join(lower)}" if lower else f"; it is the lowest that {work.precision} can have"
            return StageChoice(stage, need, f"ZeRO {stage} needs {gigabytes(need.total)} {of}: {need}{because}")
    need = min(tried.values(), key=lambda tried_one: tried_one.total)
    ways = list(_ways_out(work, lambda changed: _fitting(changed, usable)))
    advice = "; it would fit with " + ", or ".join(ways) if ways else "; nothing short of a smaller model would fit"
    return StageChoice(None, need, f"no ZeRO stage fits: the least is {gigabytes(need.total)} {of}: {need}{advice}")


def _possible(work: Workload) -> tuple[Stage, ...]:
    return STAGES if work.precision == "fp32" else STAGES[1:]


def _fitting(work: Workload, usable: float) -> Stage | None:
    return next((stage for stage in _possible(work) if memory(work, stage).total <= usable), None)


def _ways_out(work: Workload, fitting: Callable[[Workload], Stage | None]) -> Iterator[str]:
    """Single changes after which a stage fits."""
    world = max(work.world, 1) * 2
    while world <= _MOST_GPUS:
        stage = fitting(replace(work, world=world))
        if stage is not None:
            yield f"{world} GPUs (ZeRO {stage})"
            break
        world *= 2
    for micro_batch in range(work.micro_batch // 2, 0, -1):
        if work.micro_batch % micro_batch:
            continue  # a process's share of a step is a whole number of them
        stage = fitting(replace(work, micro_batch=micro_batch))
        if stage is not None:
            yield f"a micro-batch of {micro_batch} (ZeRO {stage})"
            break
    kept = work.activation_bytes * work.checkpointed_share
    stage = fitting(replace(work, activation_bytes=kept)) if work.activation_bytes else None
    if stage is not None:
        yield f"activation checkpointing (ZeRO {stage})"


def gigabytes(count: float) -> str:
    """Bytes as GB (1e9), as GPU memory is sold and the ZeRO paper counts."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e9:.3f} GB"
