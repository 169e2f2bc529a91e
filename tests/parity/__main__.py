"""``python -m tests.parity PATH…``: a line a golden case; exit 1 on any failure or unknown kind."""

import sys
from pathlib import Path

from tests.parity.runner import cases, judge

OWN = Path(__file__).parent / "golden"


def main(arguments: list[str]) -> int:
    """Runs the cases at the given files and folders, by default our own copies."""
    paths = [Path(argument) for argument in arguments] or [OWN]
    absent = [path for path in paths if not path.exists() and not path.with_suffix(".json").exists()]
    for path in absent:
        print(f"FAIL {path} there is no such file or folder")
    verdicts = [judge(case) for case in cases(path for path in paths if path not in absent)]
    for verdict in verdicts:
        print(verdict)
    if not verdicts:
        print("FAIL no golden case found")
    return 0 if verdicts and not absent and all(verdict.passed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
