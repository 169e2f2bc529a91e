"""``python -m benchmarks [name …]``: runs the benchmarks, a JSON line each; exit 1 when one misses its bar."""

import argparse
import importlib
import os
import pkgutil
import sys
import traceback
from pathlib import Path

import benchmarks
from benchmarks.harness import Bench


def found() -> dict[str, Bench]:
    """Every benchmark by its name: the ``BENCHES`` of the modules in this folder (subfolders are run by hand)."""
    benches: dict[str, Bench] = {}
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if not module.ispkg and module.name not in ("__main__", "harness"):
            benches |= importlib.import_module(f"benchmarks.{module.name}").BENCHES
    return benches


def main(arguments: list[str]) -> int:
    """Runs what is asked for, everything without names."""
    if not Path("/dev/nvidia0").exists():
        # Else DeepSpeed, which diffusers imports, says on standard output that it looked for a GPU in vain.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    benches = found()
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="name", help="one of: " + ", ".join(benches))
    chosen = parser.parse_args(arguments).names or list(benches)
    if unknown := [name for name in chosen if name not in benches]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(benches)}")
    good = True
    for name in chosen:
        try:
            result = benches[name]()
        except Exception:  # the others are still worth running; this one is reported and fails the whole
            traceback.print_exc()
            print(f'{{"bench": "{name}", "ok": false}}', flush=True)
            good = False
            continue
        print(result.line(), flush=True)
        good = good and result.ok
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
