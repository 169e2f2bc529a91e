"""Where DeepSpeed keeps the fp32 masters of the trained parameters and their optimizer state, stage by stage.

Every ZeRO stage cuts the flattened parameters its own way. Here they all look alike: this rank holds *fragments*, runs
of consecutive elements of a flattened parameter, as views that can be read and written in place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atelier.training.optimizer import EmaAdamW

WRAPPER_PREFIX = "model."
WEIGHT = "weight"
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Fragment:
    """Elements ``start`` to ``start + numel`` of a parameter's flattened form.

    Attributes:
        name: as in the objective's model.
        tensors: flat views by field: ``weight`` (the fp32 master), ``exp_avg``, ``exp_avg_sq`` and, where an average
            is kept, ``ema``; all of one length.
        owned: whether this rank is the one that saves it (without ZeRO every rank holds everything).
    """

    name: str
    start: int
    tensors: dict[str, Tensor]
    owned: bool = True

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.tensors[WEIGHT].numel()


def fragments(engine: Any) -> list[Fragment]:
    """This rank's fragments of the trained parameters; optimizer state that is not there yet is laid down."""
    found = _by_stage(engine)
    return sorted(found, key=lambda fragment: (fragment.name, fragment.start))


def updates_done(engine: Any) -> int:
    """Updates that the optimizer made: the steps without those that fp16 skipped."""
    states = _adamw(engine).state.values()
    return int(max((float(state["step"]) for state in states if "step" in state), default=0.0))


def set_updates_done(engine: Any, updates: int) -> None:
    """Puts the optimizer's own step counter back, for its bias corrections."""
    for state in _adamw(engine).state.values():
        state["step"].fill_(float(updates))


def refresh_weights(engine: Any) -> None:
    """Makes the weights of the forward pass those of the masters; collective."""
    stage, optimizer = int(engine.zero_optimization_stage()), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        persistent = optimizer.persistent_parameters
        if persistent:
            # They are held whole on every rank: let go of, then put together again from the new parts.
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)


def scaler_state(engine: Any) -> dict[str, Any]:
    """fp16's dynamic loss scale and its counters; {} where there is none."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is None or not getattr(scaler, "dynamic", False):
        return {}
    return {name: getattr(scaler, name) for name in _SCALER_FIELDS}


def restore_scaler(engine: Any, state: dict[str, Any]) -> None:
    """Takes up what ``scaler_state`` gave; nothing to do where this run has no dynamic scale."""
    if state and scaler_state(engine):
        for name in _SCALER_FIELDS:
            setattr(engine.optimizer.loss_scaler, name, state[name])


def trained_shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    """Names (as in the objective's model) and whole shapes of the trainable parameters."""
    return {name: list(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in _trained(module)}


def _trained(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name.removeprefix(WRAPPER_PREFIX), parameter


def _adamw(engine: Any) -> EmaAdamW:
    optimizer = engine.optimizer
    while not isinstance(optimizer, EmaAdamW):
        optimizer = optimizer.optimizer  # DeepSpeed's wrappers
    return optimizer


def _by_stage(engine: Any) -> Iterator[Fragment]:
    stage = int(engine.zero_optimization_stage())
    adamw = _adamw(engine)
    if stage == 0:
        # Every rank holds everything: they take turns at saving, the largest parameters dealt out first.
        named = sorted(_trained(engine.module), key=lambda item: (-item[1].numel(), item[0]))
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        for place, (name, parameter) in enumerate(named):
            yield Fragment(name, 0, _fields(adamw, parameter, 0, parameter.numel()), place % world == rank)
    elif stage == 3:
        yield from _stage_3(engine, adamw)
    else:
        flats = getattr(engine.optimizer, "single_partition_of_fp32_groups", None)
        if flats is None:
            flats = engine.optimizer.fp32_groups_flat_partition  # bf16 with stage 1
        for name, parameter in _trained(engine.module):
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:  # none of it lies on this rank otherwise
                place = mapping.hp_fragment_address
                flat = flats[mapping.param_group_index]
                start = int(mapping.lp_fragment_address.start)
                yield Fragment(name, start, _fields(adamw, flat, int(place.start), int(place.numel)))


def _stage_3(engine: Any, adamw: EmaAdamW) -> Iterator[Fragment]:
    optimizer = engine.optimizer
    for name, parameter in _trained(engine.module):
        whole: Any = parameter
        group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = torch.distributed.get_rank(group=whole.ds_process_group) * int(length)
        numel = min(int(length), int(whole.ds_numel) - start)  # the last ranks' parts end in padding
        if numel > 0:
            flat = optimizer.fp32_partitioned_groups_flat[group]
            yield Fragment(name, start, _fields(adamw, flat, int(offset), numel))


def _fields(adamw: EmaAdamW, flat: Tensor, offset: int, numel: int) -> dict[str, Tensor]:
    adamw.lay_down(flat)
    tensors = {WEIGHT: flat.detach()} | {name: value for name, value in adamw.state[flat].items() if name != "step"}
    return {name: tensor.reshape(-1).narrow(0, offset, numel) for name, tensor in tensors.items()}
