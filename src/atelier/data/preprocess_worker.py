"""A worker process of ``worker_pool``: asks for units on standard output, is given them on standard input."""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from atelier.data.lane import Lane
from atelier.data.quarantine import Quarantined
from atelier.data.work import WorkSpec
from atelier.errors import AtelierError
from atelier.storage.folder import OutputFolder


def main() -> int:
    """Works until there are no more units; 0 when all went well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    # Whatever a library prints goes to standard error; the pipe carries messages alone.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(**message: Any) -> None:
        with lock:
            pipe.write(json.dumps(message) + "\n")

    def report(images: int, bad: list[Quarantined], filtered: int) -> None:
        say(batch=images, bad=[[entry.key, entry.reason] for entry in bad], filtered=filtered)

    def units() -> Iterator[str]:
        while True:
            say(ask="unit")
            name = given.get()["unit"]
            if name is None:
                return
            yield name

    setup = json.loads(sys.stdin.readline())
    given: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, given), daemon=True).start()
    try:
        work = WorkSpec(**setup["work"]).make()
        uri, folder = setup["out"]
        Lane(work, OutputFolder(uri, Path(folder)), report, setup["decoders"]).run(units())
    except AtelierError as error:
        say(error=type(error).__name__, what=error.what, fix=error.fix)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        say(error=type(error).__name__, what=str(error), fix="")
        return 1
    say(done=work.digest)
    return 0


def _listen(lines: IO[str], given: "queue.Queue[dict[str, Any]]") -> None:
    for line in lines:
        given.put(json.loads(line))
    os._exit(1)  # the parent is gone


if __name__ == "__main__":
    sys.exit(main())
