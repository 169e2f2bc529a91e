"""What the engine needs of a recipe, and the random draws it hands to it.

The engine knows no paper: it builds an ``Objective``'s model, asks for the loss of a batch and trains what the
objective left trainable. The recipe knows no cluster: no rank, no world size, no restart reaches it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image

Batch: TypeAlias = dict[str, Any]
"""A collated micro-batch: tensors with the sample axis first, or lists of one entry a sample."""


class Objective(Protocol):
    """A recipe's model and loss, as the engine sees them."""

    def build(self) -> torch.nn.Module:
        """The frozen base with the part to be trained; ``requires_grad`` says which is which.

        The engine seeds torch's global generator before the call, so initial weights are those of the run's seed.
        """
        ...

    def parameter_groups(self, model: torch.nn.Module) -> list[dict[str, Any]]:
        """AdamW's groups: ``{"params": [...], "name": str}`` and, where they differ from the configuration's,
        ``"lr"`` and ``"weight_decay"``. The learning-rate schedule scales each group's own rate."""
        ...

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """A micro-batch from dataset samples, on the CPU. ``epoch`` and ``index`` of each are the engine's."""
        ...

    def loss(self, model: torch.nn.Module, batch: Batch, draws: "Draws", progress: float) -> dict[str, torch.Tensor]:
        """``"loss"``: the scalar to go down, a mean over the batch's samples; the others are logged beside it.

        Args:
            draws: every random number of the loss comes from here.
            progress: the share of the training that is done, in [0, 1].
        """
        ...

    def trainable_state(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The trained part (the adapter) by its exported names: views of the model's own memory, so that a training
        can begin with another's weights written into them."""
        ...

    def gauges(self, model: torch.nn.Module) -> dict[str, float]:
        """Numbers read off the weights, e.g. tanh(alpha) of each gate; logged every ``log_every`` steps."""
        ...

    def preview(self, model: torch.nn.Module, step: int) -> "list[Image.Image] | None":
        """A few samples at this step, or None; leaves the model exactly as it was."""
        ...

    def flops_per_sample(self) -> float:
        """Floating-point operations of one sample's forward and backward pass (1 MAC = 2 FLOP)."""
        ...


@runtime_checkable
class Validated(Protocol):
    """An objective with a metric of its own, measured during the training."""

    def validate(self, model: torch.nn.Module, step: int, previews: "list[Image.Image]") -> dict[str, float]:
        """The metric's values at this step, {} where the profile has none; leaves the model exactly as it was.

        Called in evaluation, without gradients and with the global generators set aside.

        Args:
            previews: what ``preview`` drew at this step; need not be drawn again.
        """
        ...


class Dataset(Protocol):
    """Random access to samples (``atelier.data.loader.ShardDataset``)."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> dict[str, Any]: ...


class Batches(Protocol):
    """This rank's endless batches (``atelier.data.loader.Loader``)."""

    @property
    def unusable(self) -> dict[int, str]:
        """The numbers of the samples that could not be read since this process began, and why."""
        ...

    def __next__(self) -> Any: ...

    def close(self) -> None:
        """Ends its threads."""
        ...


class Draws:
    """The random draws of a batch, each sample's addressed by (seed, epoch, index).

    A sample meets the same noise, timestep and drops whatever rank, worker, micro-batch or restart it lands in:
    its stream is the Philox generator with key (seed, epoch · 2⁴⁰ + index), a counter generator that needs no
    warm-up and whose keys give independent streams (Salmon et al., SC 2011). Draws are made on the CPU, so that they
    are the same numbers for every device.

    Args:
        seed: of the run, 0 ≤ seed < 2⁶⁴.
        keys: (epoch, index) of each sample, in batch order; epoch < 2²⁴, index < 2⁴⁰.
        device: where the drawn tensors go.
    """

    _INDEX_BITS = 40

    def __init__(self, seed: int, keys: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> None:
        self.seed, self.keys, self.device = seed, list(keys), torch.device(device)
        self._streams = [
            np.random.Generator(np.random.Philox(key=[seed, (epoch << self._INDEX_BITS) | index]))
            for epoch, index in self.keys
        ]

    def __len__(self) -> int:
        return len(self.keys)

    def normal(self, shape: Sequence[int] = ()) -> torch.Tensor:
        """Standard normal, fp32 [B, *shape]; advances each sample's stream."""
        return self._stack([stream.standard_normal(tuple(shape), dtype=np.float32) for stream in self._streams])

    def uniform(self, shape: Sequence[int] = ()) -> torch.Tensor:
        """Uniform in [0, 1), fp32 [B, *shape]; advances each sample's stream."""
        return self._stack([stream.random(tuple(shape), dtype=np.float32) for stream in self._streams])

    def chance(self, probability: float) -> torch.Tensor:
        """True with this probability, bool [B]; advances each sample's stream by one uniform draw."""
        return self.uniform() < probability

    def _stack(self, drawn: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack(drawn).astype(np.float32, copy=False)).to(self.device)
