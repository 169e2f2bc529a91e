"""Ranks without the seconds that imports take: a process that has imported everything forks them.

``python zygote.py`` reads a line of JSON for each attempt from stdin: ``{"settings": path, "world", "log"}``; it forks
the ranks, prints their process ids as a JSON list, waits for them and prints their exit codes.
"""

import json
import os
import socket
import sys
from pathlib import Path

import deepspeed  # noqa: F401  imported for the children
import torch  # noqa: F401
from toy import train_toy

import atelier.training.engine  # noqa: F401


def rank(number: int, attempt: dict[str, object], port: int) -> None:
    """One rank, in the child."""
    descriptor = os.open(f"{attempt['log']}-{number}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    world = str(attempt["world"])
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    code = 1
    try:
        code = 75 if train_toy(json.loads(Path(str(attempt["settings"])).read_text())) == "preempted" else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serves attempts until stdin ends."""
    for line in sys.stdin:
        attempt = json.loads(line)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        for number in range(attempt["world"]):
            child = os.fork()
            if child == 0:
                rank(number, attempt, port)
            children.append(child)
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


if __name__ == "__main__":
    main()
