"""Compares our code with golden cases, tensor by tensor."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.parity import (
    crossflow,
    crossflow_data,
    crossflow_sampling,
    crossflow_training,
    gligen,
    gligen_data,
    gligen_original,
    gligen_pipelines,
    grid,
    grid_data,
    grid_lora,
    rich_context,
    rich_context_data,
    rich_context_metrics,
    rich_context_pipelines,
)
from tests.parity.case import Case, Comparison

Kind = Callable[[Case], dict[str, Tensor] | Comparison]
SYSTEMS: dict[str, dict[str, Kind]] = {
    "crossflow": {
        **crossflow.KINDS,
        **crossflow_training.KINDS,
        **crossflow_sampling.KINDS,
        **crossflow_data.KINDS,
    },
    "gligen": {**gligen.KINDS, **gligen_original.KINDS, **gligen_data.KINDS, **gligen_pipelines.KINDS},
    "grid": {**grid.KINDS, **grid_data.KINDS, **grid_lora.KINDS},
    "rich_context": {
        **rich_context.KINDS,
        **rich_context_data.KINDS,
        **rich_context_metrics.KINDS,
        **rich_context_pipelines.KINDS,
    },
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
        result = known[case.kind](case)
        if not isinstance(result, Comparison):
            result = Comparison(dict(result), dict(case.outputs))
        return _compare(case, result)
    except Exception as error:  # one broken case must not hide the others
        return Verdict(case.name, False, f"{type(error).__name__}: {error}")


def _compare(case: Case, found: Comparison) -> Verdict:
    ours, expected = found.ours, found.expected
    atol, rtol = found.tolerance or case.tolerance
    missing = sorted(expected.keys() - ours.keys())
    if missing or not expected:
        return Verdict(case.name, False, f"outputs not computed: {missing or 'the case has none'}")
    worst, wrong = 0.0, []
    for name, wanted in expected.items():
        if not isinstance(wanted, Tensor):
            if ours[name] != wanted:
                wrong.append(f"{name}: {ours[name]!r} for {wanted!r}"[:200])
            continue
        actual, wanted = ours[name].detach().double(), wanted.double()
        if actual.shape != wanted.shape:
            wrong.append(f"{name}: shape {tuple(actual.shape)} for {tuple(wanted.shape)}")
            continue
        difference = float((actual - wanted).abs().max()) if wanted.numel() else 0.0
        worst = max(worst, difference)
        if not torch.allclose(actual, wanted, atol=atol, rtol=rtol):
            wrong.append(f"{name}: max_abs={difference:.3g}")
    return Verdict(case.name, not wrong, "; ".join(wrong[:10]) if wrong else f"max_abs={worst:.3g}")
