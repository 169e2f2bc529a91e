"""Compares our code with golden cases, tensor by tensor."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.parity import gligen, gligen_pipelines
from tests.parity.case import Case

SYSTEMS: dict[str, dict[str, Callable[[Case], dict[str, Tensor]]]] = {
    "gligen": gligen.KINDS | gligen_pipelines.KINDS,
}


@dataclass(frozen=True)
class Verdict:
    """How a case went: ``PASS name max_abs=…`` or ``FAIL name …``."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'} {self.name} {self.detail}"


def cases(paths: Iterable[Path]) -> list[Case]:
    """The cases at these files and in these folders, in order; key lists and maps are no cases."""
    found: list[Case] = []
    for path in paths:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path.with_suffix(".json")]
        found += [Case(file) for file in files if not (path.is_dir() and file.stem.startswith(("key", "param")))]
    return found


def judge(case: Case) -> Verdict:
    """Runs one case. An unknown kind, an error in our code, a missing output: all are failures by name."""
    known = SYSTEMS.get(case.system, {})
    if case.kind not in known:
        return Verdict(case.name, False, f"unknown kind {case.system}/{case.kind}")
    try:
        ours = known[case.kind](case)
        return _compare(case, ours)
    except Exception as error:  # one broken case must not hide the others
        return Verdict(case.name, False, f"{type(error).__name__}: {error}")


def _compare(case: Case, ours: dict[str, Tensor]) -> Verdict:
    atol, rtol = case.tolerance
    missing = sorted(case.outputs.keys() - ours.keys())
    if missing or not case.outputs:
        return Verdict(case.name, False, f"outputs not computed: {missing or 'the case has none'}")
    worst, wrong = 0.0, []
    for name, expected in case.outputs.items():
        actual = ours[name].detach().float()
        if actual.shape != expected.shape:
            wrong.append(f"{name}: shape {tuple(actual.shape)} for {tuple(expected.shape)}")
            continue
        difference = float((actual - expected.float()).abs().max()) if expected.numel() else 0.0
        worst = max(worst, difference)
        if not torch.allclose(actual, expected.float(), atol=atol, rtol=rtol):
            wrong.append(f"{name}: max_abs={difference:.3g}")
    return Verdict(case.name, not wrong, "; ".join(wrong) if wrong else f"max_abs={worst:.3g}")
