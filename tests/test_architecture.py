"""The house's rules: imports run down, light steps need no torch, the command line starts at once."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

#: Steps and commands of the image without torch.
LIGHT = [
    "atelier.cli",
    "atelier.steps.source",
    "atelier.steps.digits",
    "atelier.steps.download",
    "atelier.steps.register",
    "atelier.steps.report",
    "atelier.steps.look",
    "atelier.orchestration.submit",
    "atelier.orchestration.schedule",
    "atelier.orchestration.local",
    "atelier.orchestration.compile",
    "atelier.training.memory",
    "atelier.training.trainjob.launcher",
    "atelier.tracking.runs",
    "atelier.tracking.registry",
    "atelier.storage.folder",
]
HEAVY = ("torch", "diffusers", "transformers", "deepspeed", "sklearn", "pyarrow", "matplotlib")


def test_imports_run_downwards() -> None:
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=PROJECT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert result.stdout.strip() == "[]"


def test_help_imports_no_library() -> None:
    code = (
        "import sys, atelier.cli\n"
        "try:\n    atelier.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('kfp', 'mlflow', 'pydantic', 'yaml', 'boto3', 'numpy', 'fsspec') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[]"
