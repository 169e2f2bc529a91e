"""torchrun that dies with its launcher: ``python -m atelier.training.agent <launcher pid> <torchrun arguments>``."""

import os
import sys

from atelier.training.process import die_with_parent


def main(launcher: int, arguments: list[str]) -> None:
    """Runs torchrun in this process."""
    # Here and not in subprocess's preexec_fn, which may deadlock when the launcher has threads (it has).
    die_with_parent()
    if os.getppid() != launcher:
        sys.exit(1)  # it died before the line above

    from torch.distributed.run import main as torchrun

    torchrun(arguments)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
