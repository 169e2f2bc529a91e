"""A rank's own process: dies with its parent, logs to its own file, leaves a record of how it ended."""

import ctypes
import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from atelier import errors

_PR_SET_PDEATHSIG = 1
try:
    _prctl: Any = ctypes.CDLL(None, use_errno=True).prctl
except (OSError, AttributeError):  # not Linux
    _prctl = None


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, however it ends; Linux only."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


_stop_asked = False


def listen_for_stop() -> None:
    """Takes note of SIGTERM and SIGINT instead of dying of them; the training asks ``stop_asked`` after each step.

    Installed before anything heavy is imported, so that a signal during the start is not lost either.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note_stop)


def _note_stop(number: int, frame: FrameType | None) -> None:
    global _stop_asked
    _stop_asked = True


def stop_asked() -> bool:
    """Whether this process was signalled since ``listen_for_stop``."""
    return _stop_asked


def log_path(folder: Path, rank: int) -> Path:
    """Where a rank's output goes."""
    return folder / f"rank-{rank:02d}.log"


def record_path(folder: Path, rank: int) -> Path:
    """Where a rank leaves ``{"pid", "outcome", …}``."""
    return folder / f"rank-{rank:02d}.json"


def run_rank(module: str, arguments: list[str], logs: Path) -> None:
    """Runs ``module`` as ``python -m`` would, as one rank of a training, and ends the process.

    The module returns (or exits with 0) when it is complete and exits with ``Preempted``'s code when it saved and
    stopped; then the rank's own exit code is 0, so that torchrun does not take it for a failure and kill the others
    while they save.

    Args:
        logs: the folder of the rank's log and record, read by the launcher.
    """
    listen_for_stop()
    die_with_parent()
    rank = int(os.environ.get("RANK", "0"))
    record: dict[str, Any] = {"pid": os.getpid(), "started": time.time()}
    _write(record_path(logs, rank), record)
    _redirect(log_path(logs, rank))
    try:
        record |= _outcome(module, arguments, rank)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _write(record_path(logs, rank), record | {"ended": time.time()})
    # Not sys.exit: threads and process groups of libraries have nothing left to do and must not hold up the end.
    os._exit(1 if record.get("outcome") == "failed" else 0)


def _outcome(module: str, arguments: list[str], rank: int) -> dict[str, Any]:
    """Runs the module; ``{"outcome": complete, preempted or failed, …}``."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except errors.Preempted:
        return {"outcome": "preempted"}
    except SystemExit as end:
        code = end.code or 0
        if code == errors.Preempted.exit_code:
            return {"outcome": "preempted"}
        if code != 0:
            print(f"rank {rank}: the worker ended with {code}", flush=True)
            return {"outcome": "failed", "error": "SystemExit"}
    except errors.AtelierError as error:
        print(f"rank {rank}: {error}", flush=True)
        return {"outcome": "failed", "error": type(error).__name__, "what": error.what, "fix": error.fix}
    except BaseException as error:
        traceback.print_exc()
        return {"outcome": "failed", "error": type(error).__name__, "message": str(error)[:2000]}
    return {"outcome": "complete"}


def _redirect(log: Path) -> None:
    """Sends this process's standard output and error, also its libraries' and children's, to ``log``."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)
