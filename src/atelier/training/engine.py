"""The one training engine: DeepSpeed around a recipe's objective, run in every rank.

A step is: ``accumulation`` micro-batches forward and backward, one update, the callbacks, and one small collective in
which the ranks agree on whether to save or stop. What a resumed run does is a function of the step alone (schedule,
data order, draws) and of what the checkpoint holds (weights, optimizer with EMA, running means of the loss log), so it
ends with the same bits.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed

from atelier.errors import ConfigError, TrainingError
from atelier.storage.atomic import write_bytes, write_json
from atelier.storage.uri import join
from atelier.training import checkpoint as checkpoints
from atelier.training.callbacks import Callback, Request
from atelier.training.callbacks.metrics_log import METRICS, read_lines
from atelier.training.config import TrainConfig
from atelier.training.deepspeed_config import deepspeed_config
from atelier.training.delivery import deliver
from atelier.training.devices import device_peak, require_fp16, utilization
from atelier.training.masters import (
    fragments,
    refresh_weights,
    restore_scaler,
    scaler_state,
    set_updates_done,
    trained_shapes,
    updates_done,
)
from atelier.training.meter import Meter
from atelier.training.optimizer import EmaAdamW, build_optimizer
from atelier.training.partial_start import REPORT
from atelier.training.parts import SUFFIX, Parts, part_name, put_back
from atelier.training.protocol import Batch, Batches, Dataset, Draws, Objective
from atelier.training.retention import Retention
from atelier.training.run import TrainingRun
from atelier.training.runtime import Ranks, start_ranks
from atelier.training.saver import Saver, agreed, everyones, find_newest
from atelier.training.scalars import scalars_set_aside
from atelier.training.schedule import lr_factor
from atelier.training.series import Series, open_series, open_single
from atelier.training.warm_start import StartWeights

SCRATCH, FINAL, SUMMARY = ".checkpoints", "checkpoint", "train.json"

LoaderFactory = Callable[..., Batches]
"""``atelier.data.loader.Loader``: (dataset, batch_size, rank, world, seed, start, workers, collate) → batches."""


@dataclass(frozen=True)
class TrainResult:
    """How a call of ``train`` ended."""

    outcome: Literal["complete", "preempted"]
    step: int


def train(
    objective: Objective,
    dataset: Dataset,
    config: TrainConfig,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    *,
    loader: LoaderFactory,
    checkpoints_at: str | None = None,
    start: StartWeights | None = None,
    outputs_at: str | None = None,
) -> TrainResult:
    """Trains an objective, or goes on where an earlier call in the same folder was ended; runs inside each rank.

    Args:
        folder: gets ``checkpoint/`` (the end state), ``train.json`` and what the callbacks write.
        loader: makes this rank's endless iterator of micro-batches.
        checkpoints_at: a path or ``s3://`` prefix for the intermediate checkpoints, which is emptied when the training
            is complete; None: ``.checkpoints/`` in the folder. Several machines need a place that all of them see.
        start: writes the weights that a fresh training begins with, whose account goes to ``start.json``; a resumed
            one does not call it. None: the objective's own start.
        outputs_at: an ``s3://`` prefix that all files go to when the training is complete, before the intermediate
            checkpoints are removed (see ``delivery``): the ranks' parts of ``checkpoint/`` from the machines that they
            are on, so that no disk is shared; None: they stay in the folder.

    Returns:
        ``complete`` with all files in place, or ``preempted`` with a checkpoint of the step that was reached.

    Raises:
        ConfigError: the checkpoint found does not fit this configuration, or the start not the model.
        StorageError: a checkpoint could not be written.
        TrainingError: the loss is no longer a finite number.
    """
    ranks = start_ranks(config.threads_per_process)
    if ranks.world != config.processes:
        raise TrainingError(
            f"{ranks.world} processes were started, the configuration says {config.processes}",
            "start as many ranks as the configuration's processes",
        )
    folder.mkdir(parents=True, exist_ok=True)
    series = open_series(checkpoints_at or str(folder / SCRATCH), folder / SCRATCH)
    return _Trainer(objective, dataset, config, folder, callbacks, loader, ranks, series, start, outputs_at).run()


class _Loss(torch.nn.Module):
    """The objective's loss as a module's forward: DeepSpeed hooks the backward pass of what it calls."""

    def __init__(self, objective: Objective, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, batch: Batch, draws: Draws, progress: float) -> dict[str, torch.Tensor]:
        return self._objective.loss(self.model, batch, draws, progress)


class _Collate:
    """Collates and keeps each sample's address for its draws; picklable where the objective is (loader workers)."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __call__(self, samples: list[dict[str, Any]]) -> tuple[list[tuple[int, int]], Batch]:
        keys = [(int(sample["epoch"]), int(sample["index"])) for sample in samples]
        return keys, self._objective.collate(samples)


class _Trainer:
    def __init__(
        self,
        objective: Objective,
        dataset: Dataset,
        config: TrainConfig,
        folder: Path,
        callbacks: Sequence[Callback],
        loader: LoaderFactory,
        ranks: Ranks,
        series: Series,
        start: StartWeights | None,
        outputs_at: str | None,
    ) -> None:
        self.outputs_at = outputs_at
        self.objective, self.dataset, self.config, self.folder = objective, dataset, config, folder
        self.callbacks, self.make_loader, self.ranks, self.start = list(callbacks), loader, ranks, start
        self.batches: Batches | None = None
        self._plain_norm: torch.Tensor | None = None
        self._unusable: dict[str, str] = {}
        self.meter = Meter()
        retention = Retention(config.keep_checkpoints, config.keep_best, config.keep_best_mode)
        self.saver = Saver(series, retention, ranks)
        # Ranks agree after every step; on a GPU that must not wait for the device's queue, so it goes over gloo.
        self._control = (
            distributed.new_group(backend="gloo") if ranks.world > 1 and ranks.device.type == "cuda" else None
        )

    def run(self) -> TrainResult:
        config, ranks = self.config, self.ranks
        final = agreed(checkpoints.verified(self.folder / FINAL) if ranks.first else None, ranks)
        if final is not None and final.step == config.steps:
            if ranks.first:
                self.saver.series.clear()  # killed before it came to that
            return TrainResult("complete", final.step)

        # The end of a shorter training, unless this one has been further already.
        beyond = -1 if final is None else final.step
        found = find_newest(self.saver.series, ranks, self._own_file_does, beyond) or final
        self.engine, model = self._build(fresh=found is None)
        self.state = TrainingRun(self.objective, model, config, self.folder, ranks)
        self._flops = self.objective.flops_per_sample() if ranks.first else 0.0  # only rank 0's line is written
        self._peak = device_peak(ranks.device, config.precision)
        if found is not None:
            self._resume(found)
        for callback in self.callbacks:
            callback.on_start(self.state)

        try:
            outcome = self._loop()
        finally:
            self.saver.close()
            if self.batches is not None:
                self.batches.close()
        for callback in self.callbacks:
            callback.on_end(self.state)
        return TrainResult(outcome, self.state.step)

    def _build(self, fresh: bool) -> tuple[Any, torch.nn.Module]:
        import deepspeed
        from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

        if self.config.precision == "fp16":
            require_fp16()
        if EmaAdamW not in ZERO_SUPPORTED_OPTIMIZERS:
            ZERO_SUPPORTED_OPTIMIZERS.append(EmaAdamW)  # it is torch's AdamW with one more moment
        config = self.config
        torch.manual_seed(config.seed)
        model = self.objective.build()
        if self.start is not None and fresh:
            account = self.start(self.objective.trainable_state(model))
            if self.ranks.first:
                account.write(self.folder)
                print("\n".join(account.lines()), flush=True)
        groups = self.objective.parameter_groups(model)
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if not trainable:
            raise TrainingError("the objective's model has no trainable parameter", "set requires_grad in build()")
        model.train()
        on_gpu = self.ranks.device.type == "cuda"
        optimizer = build_optimizer(groups, config)
        self._peak_lrs = [group["peak_lr"] for group in optimizer.param_groups]
        with scalars_set_aside(model, self.ranks):
            engine, *_ = deepspeed.initialize(
                model=_Loss(self.objective, model),
                optimizer=optimizer,
                config=deepspeed_config(config, trainable, on_gpu),
            )
        if config.zero_stage == 0 and self.ranks.world == 1:
            engine.enable_backward_allreduce = False  # it would copy all gradients there and back, to nobody
        return engine, model

    def _loop(self) -> Literal["complete", "preempted"]:
        config, state = self.config, self.state
        batches = self.batches = self.make_loader(
            self.dataset,
            batch_size=config.process_micro_batch,
            rank=self.ranks.rank,
            world=self.ranks.world,
            seed=config.seed,
            start=state.step * config.batch_size,
            workers=config.loader_workers,
            collate=_Collate(self.objective),
        )
        began = time.monotonic() - state.seconds
        self.meter.start()
        while not state.finished:
            self._step(batches)
            state.step += 1
            state.seconds = time.monotonic() - began
            self.meter.count_step(config.batch_size)
            if state.step % config.log_every == 0 or state.finished:
                self._log()
            with self.meter.aside():
                for callback in self.callbacks:
                    callback.on_step(state)
            request = self._agreed_request()
            if request & Request.STOP and not state.finished:
                self._save()
                self.saver.finish()
                return "preempted"
            if request & Request.SAVE and not state.finished:
                with self.meter.saving():
                    self._save()
            if request & Request.WAIT and not state.finished:
                self._wait_for_save()
        self._finish()
        return "complete"

    def _step(self, batches: Batches) -> None:
        config, engine, state = self.config, self.engine, self.state
        factor = lr_factor(config, state.step)
        for group, peak in zip(engine.optimizer.param_groups, self._peak_lrs, strict=True):
            group["lr"] = peak * factor
        for micro in range(config.accumulation):
            with self.meter.waiting():
                keys, batch = next(batches)
                batch = to_device(batch, self.ranks.device)
            # Dropout and the like draw from the global generator: addressed too, though by rank, not by sample.
            torch.manual_seed(address(config.seed, state.step, micro, self.ranks.rank))
            losses = engine(batch, Draws(config.seed, keys, self.ranks.device), state.step / config.steps)
            engine.backward(losses["loss"])
            self.meter.add({name: value.detach() for name, value in losses.items()}, len(keys))
            if config.zero_stage == 0 and micro == config.accumulation - 1:
                # Without ZeRO DeepSpeed tells no norm, and its clipping fails on parameters of no dimension (gates).
                self._plain_norm = self._clip()
            engine.step()

    def _clip(self) -> torch.Tensor:
        """Clips the averaged gradients by their global norm, which is returned."""
        open_ones = [p for p in self.engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in open_ones])
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(open_ones, self.config.clip_norm, norm)
        return norm

    def _log(self) -> None:
        norm = self._plain_norm if self.config.zero_stage == 0 else self.engine.get_global_grad_norm()
        line = self.meter.take(self.ranks)
        if not math.isfinite(line["loss"]) or (self.config.precision != "fp16" and self.engine.skipped_steps):
            raise TrainingError(
                f"the loss or its gradient is not finite at step {self.state.step} (loss "
                f"{line['loss']:g}); checkpoints up to here are intact",
                "lower the learning rate or set clip_norm; look at metrics.jsonl for where it began",
            )
        line |= utilization(line["samples_per_s"], self._flops, self.ranks.world, self._peak)
        line["lr"] = self._peak_lrs[0] * lr_factor(self.config, self.state.step - 1)
        if norm is not None:
            line["grad_norm"] = float(norm)
        line["seconds"] = round(self.state.seconds, 3)
        self.state.metrics = line
        for callback in self.callbacks:
            callback.on_log(self.state)

    def _save(self) -> None:
        """Begins a checkpoint of this step; collective."""
        for callback in self.callbacks:
            callback.on_save(self.state)
        self.saver.start(self.state.step, fragments(self.engine), self._state_to_save(), self._logs())

    def _wait_for_save(self) -> None:
        """Until the save that is going on is whole; collective."""
        began = time.monotonic()
        with self.meter.saving():
            self.saver.finish()
        self.state.waited_s += time.monotonic() - began

    def _state_to_save(self) -> dict[str, Any]:
        """Everything but the tensors; collective. Data order, schedule and draws are functions of the step."""
        return {
            "step": self.state.step,
            "seconds": self.state.seconds,
            "samples": self.state.step * self.config.batch_size,
            "updates": updates_done(self.engine),
            "skipped": int(self.engine.skipped_steps),
            "scaler": scaler_state(self.engine),
            "meter": self.meter.state(self.ranks),
            "unusable": self._all_unusable(),
            "metrics": self.state.metrics | {f"validation/{k}": v for k, v in self.state.validation.items()},
            "processes": self.ranks.world,
            "zero_stage": int(self.engine.zero_optimization_stage()),
            "config": self.config.model_dump(mode="json"),
            "parameters": trained_shapes(self.engine.module),
        }

    def _all_unusable(self) -> dict[str, str]:
        """Number and reason of each sample that any rank found unusable, before resumes too; collective.

        By number: another rank meets the same ones in another epoch.
        """
        if self.batches is not None:
            self._unusable |= {str(number): reason for number, reason in self.batches.unusable.items()}
        for found in everyones(self._unusable, self.ranks):
            self._unusable |= found
        return dict(sorted(self._unusable.items(), key=lambda item: int(item[0])))

    def _logs(self) -> list[Path]:
        start = [self.folder / REPORT] if self.start is not None else []
        return start + [self.folder / name for callback in self.callbacks for name in callback.logs]

    def _own_file_does(self, found: checkpoints.Checkpoint) -> bool:
        """Whether the ranks and their parts are those of the checkpoint, so that each needs its own file alone."""
        config, saved = self.config, found.state
        return (
            config.zero_stage > 0
            and (saved["processes"], saved["zero_stage"]) == (self.ranks.world, config.zero_stage)
            # DeepSpeed has another optimizer for each, which need not cut alike.
            and saved["config"].get("precision") == config.precision
        )

    def _resume(self, found: checkpoints.Checkpoint) -> None:
        """Puts a verified checkpoint's state back, whatever ranks and ZeRO stage it was made with; collective."""
        saved, engine = found.state, self.engine
        if saved["parameters"] != trained_shapes(engine.module):
            raise ConfigError(
                f"checkpoint {found.folder} was made with other trainable parameters",
                "resume with the settings it was made with, or start in an empty folder",
            )
        names = [name for name in found.names if name.endswith(SUFFIX)]
        if self._own_file_does(found):
            names = [part_name(self.ranks.rank)]
        with Parts(found.folder, names) as parts:
            put_back(fragments(engine), parts)
        set_updates_done(engine, int(saved["updates"]))
        restore_scaler(engine, saved["scaler"])
        refresh_weights(engine)
        engine.global_steps, engine.skipped_steps = found.step, int(saved["skipped"])
        engine.micro_steps = found.step * self.config.accumulation
        self.state.step = self.state.first_step = self.saver.kept = self.state.kept_step = found.step
        self.state.seconds = float(saved["seconds"])
        if self.ranks.first:
            self._restore_logs(found)
        self.meter.restore(saved["meter"], self.ranks)
        self._unusable = dict(saved.get("unusable", {}))
        if self.ranks.first:
            other = saved["processes"] not in (0, self.ranks.world)
            made = f", saved by {saved['processes']} processes" if other else ""
            does = "resuming from" if found.step else "starting from the weights of"
            name = found.folder.name.removeprefix(".").removesuffix(".fetched.tmp")
            print(f"{does} step {found.step} of {self.config.steps} ({name}{made})", flush=True)

    def _restore_logs(self, found: checkpoints.Checkpoint) -> None:
        """The logs come from the checkpoint: this machine's may end earlier, where another one went on meanwhile."""
        for path in self._logs():
            if path.name in found.names:
                write_bytes(path, (found.folder / path.name).read_bytes())

    def _agreed_request(self) -> Request:
        """What any rank's callbacks ask for; publishes the checkpoint that all ranks have delivered by now."""
        asked, busy = Request.NOTHING, self.saver.busy
        self.state.saving, self.state.kept_step = busy or self.saver.delivered, self.saver.kept
        for callback in self.callbacks:
            asked |= callback.request(self.state)
        if self.ranks.world > 1:
            flags = torch.tensor([*(bool(asked & request) for request in Request), busy], dtype=torch.uint8)
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX, group=self._control)
            *any_asked, any_busy = flags.tolist()
            asked, busy = Request.NOTHING, bool(any_busy)
            for request, wanted in zip(Request, any_asked, strict=True):
                asked |= request if wanted else Request.NOTHING
        if self.saver.delivered and not busy:
            self.saver.publish()
        return asked

    def _finish(self) -> None:
        for callback in self.callbacks:
            callback.on_save(self.state)
        held, state = fragments(self.engine), self._state_to_save()
        quarantined = Counter(state["unusable"].values())
        if self.ranks.first:
            config, model = self.config, self.state.model
            write_json(
                self.folder / SUMMARY,
                {
                    "steps": self.state.step,
                    "samples": self.state.step * config.batch_size,
                    "seconds": round(self.state.seconds, 3),
                    "quarantined": dict(quarantined),
                    "metrics": self.state.metrics,
                    "gauges": self.objective.gauges(model),
                    "parameters": {
                        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
                        "frozen": sum(p.numel() for p in model.parameters() if not p.requires_grad),
                    },
                    "flops_per_sample": self._flops,
                    "config": config.model_dump(mode="json"),
                },
            )
        # After the summary: where this is found the training is complete, and nobody writes one any more.
        place = join(self.outputs_at, FINAL) if self.outputs_at else str(self.folder / FINAL)
        self.saver.save_now(open_single(place, self.folder / SCRATCH / FINAL), held, self.state.step, state)
        if self.ranks.first:
            if self.outputs_at is not None:
                deliver(self.folder, self.outputs_at, [FINAL])
            self.saver.series.clear()


def address(*numbers: int) -> int:
    """A 63-bit seed for a tuple of small numbers (splitmix64 over each): unequal tuples give unrelated seeds."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``, those of dictionaries in it too; lists stay as they are."""
    if device.type == "cpu":
        return batch

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(part) for name, part in value.items()}
        return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    return {name: moved(value) for name, value in batch.items()}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The loss log of a training, a dict a line."""
    return read_lines(folder / METRICS)


def read_summary(folder: Path) -> dict[str, Any]:
    """``train.json`` of a finished training."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    return summary
