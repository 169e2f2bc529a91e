"""How long the command line keeps a person waiting: its help, a plan, and compiling every pipeline."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import Result

PROJECT = Path(__file__).parents[1]
ROUNDS = 5


def cli_help_s() -> Result:
    """Median seconds of ``atelier --help``, each a process of its own."""
    seconds = [_seconds("--help") for _ in range(ROUNDS)]
    return Result("cli_help_s", round(statistics.median(seconds), 3), "s", 0.4, "lower", _spread(seconds))


def compile_all_s() -> Result:
    """Median seconds of ``atelier compile`` of every pipeline for the profile paper."""
    seconds = [_seconds("compile", "--profile", "paper") for _ in range(ROUNDS)]
    return Result("compile_all_s", round(statistics.median(seconds), 3), "s", 5.0, "lower", _spread(seconds))


def plan_s() -> Result:
    """Median seconds of ``atelier plan`` for the profile paper, with a look into a local cache."""
    words = ("plan", "igligen_xl_512", "--profile", "paper", "--artifacts", ".atelier/artifacts")
    seconds = [_seconds(*words) for _ in range(ROUNDS)]
    return Result("plan_s", round(statistics.median(seconds), 3), "s", 2.0, "lower", _spread(seconds))


def _seconds(*words: str) -> float:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "atelier.cli", *words],
        check=True,
        cwd=PROJECT,
        env={**kept, "ATELIER_PROJECT": str(PROJECT)},
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def _spread(seconds: list[float]) -> str:
    return f"{min(seconds):.2f} to {max(seconds):.2f} s over {len(seconds)} processes"


BENCHES = {"cli_help_s": cli_help_s, "compile_all_s": compile_all_s, "plan_s": plan_s}
