"""What a step needs of its operating system process: its own group, a log, one stop signal, no orphans."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from atelier.errors import Preempted


def is_step_process() -> bool:
    """True in a process that KFP's executor started (in a pod or under kfp.local), False in tests and debuggers."""
    return os.environ.get("_KFP_RUNTIME") == "true"


def adopt(log: Path | None) -> None:
    """Prepares a step's own process; call once, in the main thread, before the work.

    * Below our command line a process group of its own: Ctrl-C in the terminal reaches the command line alone, which
      then passes on exactly one signal to the step. In a pod it stays in its group, which Argo signals as a whole.
    * SIGINT and SIGTERM raise ``Preempted`` in the main thread.
    * When the command line dies without a word (kill -9), this process and its children die too.
    * Standard output and error, also of children, go into ``log``.
    """
    orchestrator = os.environ.get("ATELIER_CLI_PID")
    if orchestrator:
        os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _preempt)
    if orchestrator:
        _die_with(int(orchestrator))
    if log is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


def _preempt(number: int, frame: FrameType | None) -> None:
    raise Preempted(
        f"the step was asked to end ({signal.Signals(number).name})", "run the same command again: it goes on from here"
    )


def _die_with(pid: int) -> None:
    """Ends this process's tree when process ``pid`` ends.

    PR_SET_PDEATHSIG does not serve here: the parent is the shell of KFP's command, which outlives the command line.
    A pidfd becomes readable when its process ends.
    """
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        _kill_tree()
        return
    except (OSError, AttributeError):
        return  # another process namespace or an old kernel: nothing to watch

    def watch() -> None:
        poller = select.poll()
        poller.register(watched, select.POLLIN)
        poller.poll()
        _kill_tree()

    threading.Thread(target=watch, name="die-with-command-line", daemon=True).start()


def _kill_tree() -> None:
    kill_children()
    os.kill(os.getpid(), signal.SIGKILL)


def kill_children() -> None:
    """Kills every process below this one."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Sets environment variables (None: leaves as it is) and puts the old ones back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
