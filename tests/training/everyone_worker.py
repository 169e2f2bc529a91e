"""A rank that writes what ``all_rows`` gives it, and the gradient that comes back."""

import sys
from pathlib import Path

import torch

from atelier.training.everyone import all_rows
from atelier.training.runtime import start_ranks


def main(folder: str) -> int:
    ranks = start_ranks(1)
    rows = (torch.arange(4.0).view(2, 2) + 10 * ranks.rank).requires_grad_()
    everyone, first = all_rows(rows)
    # Each rank's loss weighs all rows by its own number.
    ((ranks.rank + 1) * everyone.square()).sum().backward()
    torch.save({"rows": everyone.detach(), "first": first, "grad": rows.grad}, Path(folder) / f"{ranks.rank}.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
