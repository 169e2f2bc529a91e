"""How a training runs: the engine's whole configuration, validated before anything starts."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["constant", "cosine", "flat_cosine"]


_MEANS = {
    "processes", "nodes", "micro_batch", "zero_stage", "threads_per_process", "loader_workers",
    "checkpoint_every_steps", "checkpoint_every_s", "keep_checkpoints", "keep_best", "keep_best_mode",
}  # fmt: skip


class TrainConfig(BaseModel):
    """Frozen settings of one training run; sizes are in samples, optimizer steps and seconds.

    A step is one optimizer update over ``batch_size`` samples, whatever the processes and micro-batches it is
    divided into, so the schedule and the data order do not depend on the hardware.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0, description="optimizer updates")
    batch_size: int = Field(gt=0, description="samples an update, over all processes")
    micro_batch: int | None = Field(None, gt=0, description="samples a forward pass of one process; None: its share")
    processes: int = Field(1, gt=0, description="ranks in all, over all nodes")
    nodes: int = Field(1, gt=0, description="machines that the processes are shared among equally")
    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Precision = "fp32"

    lr: float = Field(1e-4, ge=0, description="of groups without their own")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="of groups without their own")
    schedule: Schedule = "constant"
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up from lr/warmup_steps")
    flat_share: float = Field(0.5, ge=0, le=1, description="flat_cosine: share of the steps before the cosine")
    final_lr_share: float = Field(0.0, ge=0, le=1, description="lr at the end over the peak lr")
    clip_norm: float | None = Field(1.0, gt=0, description="greatest global gradient norm; None: no clipping")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="of the trainable parameters; None: no EMA")
    seed: int = Field(0, ge=0, lt=2**63)

    log_every: int = Field(10, gt=0)
    preview_every: int | None = Field(None, gt=0)
    validate_every: int | None = Field(None, gt=0, description="steps; None: with the previews")
    checkpoint_every_steps: int | None = Field(None, gt=0, description="the most steps that a kill may cost")
    checkpoint_every_s: float | None = Field(None, gt=0, description="the same in seconds, and the step under way")
    keep_checkpoints: int = Field(2, gt=0, description="how many of the newest stay")
    keep_best: str | None = Field(None, description="a logged number whose best checkpoint stays too, e.g. loss")
    keep_best_mode: Literal["min", "max"] = "min"

    threads_per_process: int = Field(1, gt=0)
    loader_workers: int = Field(0, ge=0)

    def outcome(self) -> dict[str, Any]:
        """The settings that decide what comes out; the others say by what and how it is computed.

        They name the training, so that one that was begun on eight processes goes on with four.
        """
        return self.model_dump(mode="json", exclude=_MEANS)

    @model_validator(mode="after")
    def _masters_in_fp32(self) -> Self:
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                f"zero_stage 0 with {self.precision}: DeepSpeed would add gradients up in {self.precision}; "
                "zero_stage 1 does the same arithmetic with fp32 masters and needs less memory"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by processes {self.processes}")
        if self.processes % self.nodes:
            raise ValueError(f"processes {self.processes} is not divisible by nodes {self.nodes}")
        if self.micro_batch is not None and (self.batch_size // self.processes) % self.micro_batch:
            raise ValueError(
                f"batch_size/processes = {self.batch_size // self.processes} is not divisible by "
                f"micro_batch {self.micro_batch}: gradient accumulation needs whole micro-batches"
            )
        return self

    @property
    def process_micro_batch(self) -> int:
        """Samples in one forward pass of one process."""
        return self.micro_batch or self.batch_size // self.processes

    @property
    def accumulation(self) -> int:
        """Micro-batches a process adds up before an update."""
        return self.batch_size // (self.processes * self.process_micro_batch)
