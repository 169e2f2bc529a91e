"""Why a training ended: the causes that are retried differently, and what a rank's own end says of them."""

import signal
from typing import Any, Literal, get_args

from atelier import errors

Cause = Literal["preempted", "node_lost", "out_of_memory", "nccl", "bad_config", "bad_data", "unknown"]
CAUSES: tuple[Cause, ...] = get_args(Cause)

RAISED: dict[Cause, type[errors.AtelierError]] = {
    "preempted": errors.Preempted,
    "node_lost": errors.NodeLost,
    "out_of_memory": errors.OutOfMemory,
    "nccl": errors.CollectiveFailed,
    "bad_config": errors.ConfigError,
    "bad_data": errors.DataError,
    "unknown": errors.TrainingError,
}
"""What the step raises, and so its exit code, when a cause's budget is spent."""

_OURS: dict[str, Cause] = {
    "ConfigError": "bad_config",
    # A loss that is not finite: the same settings would end there again.
    "TrainingError": "bad_config",
    "DataError": "bad_data",
    "OutOfMemory": "out_of_memory",
    "MemoryError": "out_of_memory",
    "OutOfMemoryError": "out_of_memory",
    "DistBackendError": "nccl",
    "DistNetworkError": "nccl",
    "DistStoreError": "nccl",
}

_SAID: tuple[tuple[Cause, tuple[str, ...]], ...] = (
    ("node_lost", ("uncorrectable nvlink error", "uncorrectable ecc error", "fallen off the bus")),
    (
        "out_of_memory",
        ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed"),
    ),
    (
        "nccl",
        (
            "nccl", "connection closed by peer", "connection reset by peer", "connection refused", "broken pipe",
            "timed out waiting", "gloo timeout", "watchdog caught collective",
        ),
    ),
)  # fmt: skip
"""What messages of torch, CUDA and NCCL say of a cause; looked for in this order, in small letters."""


def cause_of(record: dict[str, Any], log_end: str, killed_by: int | None, out_of_memory: bool) -> Cause:
    """The cause that one rank's end points to.

    Args:
        record: what it left (see ``records``): with ``error`` and ``message`` where it raised.
        log_end: the last lines of its log.
        killed_by: the signal that ended it, if any.
        out_of_memory: whether the kernel killed a process of this node for memory.
    """
    if record.get("outcome") == "preempted":
        return "preempted"
    if record.get("outcome") == "failed":
        error = str(record.get("error"))
        if error in _OURS:
            return _OURS[error]
        return _said(str(record.get("message", ""))) or "unknown"
    if out_of_memory:
        return "out_of_memory"
    if killed_by == signal.SIGBUS:
        return "out_of_memory"  # a full /dev/shm is noticed at the first write
    if killed_by == signal.SIGABRT:
        return _said(log_end) or "unknown"  # how NCCL's watchdog ends a process
    return "unknown"


def _said(text: str) -> Cause | None:
    text = text.lower()
    for cause, phrases in _SAID:
        if any(phrase in text for phrase in phrases):
            return cause
    return None
