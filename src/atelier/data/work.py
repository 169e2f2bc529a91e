"""What a lane does with raw examples: prepare each one in a thread, finish a batch of them on the accelerator."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from atelier.data.raw_example import RawExample
from atelier.data.raw_source import RawUnits


@dataclass(frozen=True, eq=False)
class Sample:
    """What a shard holds of one example.

    Attributes:
        key: the example's.
        arrays: by field name, dtypes fixed. One with NaN or infinity, or of another dtype or shape than the shard's
            first, is quarantined.
        record: everything that is not an array; JSON values.
        boxes: how many were kept, clipped and dropped.
        counts: what else is counted of the samples, by name.
    """

    key: str
    arrays: dict[str, np.ndarray]
    record: dict[str, Any]
    boxes: dict[str, int]
    counts: Mapping[str, int] = field(default_factory=dict)


class Work(Protocol):
    """A source, and what becomes of its examples. Same examples in same batches must give the same samples."""

    @property
    def digest(self) -> str:
        """Of everything that decides the samples beside source and settings (the models)."""
        ...

    @property
    def source(self) -> RawUnits:
        """Where the examples come from."""
        ...

    @property
    def samples_per_shard(self) -> int:
        """Examples that a shard covers."""
        ...

    @property
    def batch(self) -> int:
        """Examples finished at once."""
        ...

    def unwanted(self, example: RawExample) -> str:
        """Why an example is dropped before it is decoded, or ""; must be quick: one thread asks for all of them."""
        ...

    def prepare(self, example: RawExample) -> Any:
        """Decodes an example; called from several threads.

        Raises:
            ValueError: the example is of no use; says why.
        """
        ...

    def finish(self, prepared: list[Any]) -> list[Sample]:
        """A sample for each prepared example, in their order; called from one thread. It uses the accelerator that
        it sees: of several, each worker process is shown one (``CUDA_VISIBLE_DEVICES``)."""
        ...


@dataclass(frozen=True)
class Entry:
    """A call in words that another process understands.

    Attributes:
        entry: ``"package.module:function"`` of our own code.
        arguments: the function's keyword arguments; JSON values.
    """

    entry: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def call(self) -> Any:
        """What the function returns."""
        module, _, name = self.entry.partition(":")
        return getattr(importlib.import_module(module), name)(**self.arguments)


class WorkSpec(Entry):
    """How another process makes the same work."""

    def make(self) -> Work:
        """Calls the function."""
        work: Work = self.call()
        return work
