"""Rows of all processes and the gradients that come home."""

from pathlib import Path

import torch

from atelier.training.everyone import all_rows
from atelier.training.launcher import LocalLauncher
from tests.training.launching import PATHS


def test_alone_they_are_the_rows_given() -> None:
    rows = torch.ones(2, 3)
    found, first = all_rows(rows)
    assert found is rows
    assert first == 0


def test_two_processes(tmp_path: Path) -> None:
    """Both see all rows in rank order; a row's gradient is the sum of what both ranks' losses say."""
    LocalLauncher(environment={"PYTHONPATH": PATHS}).run("everyone_worker", [str(tmp_path)], 2, tmp_path / "logs")
    expected = torch.cat([torch.arange(4.0).view(2, 2), torch.arange(4.0).view(2, 2) + 10])
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["rows"], expected)
        assert found["first"] == 2 * rank
        assert torch.equal(found["grad"], (1 + 2) * 2 * expected[2 * rank : 2 * rank + 2])
