"""A rank's entry under torchrun: ``python -m atelier.training.rank <logs folder> <module> [arguments]``."""

import sys
from pathlib import Path

from atelier.training.process import run_rank

if __name__ == "__main__":
    run_rank(sys.argv[2], sys.argv[3:], Path(sys.argv[1]))
