"""The house's rules: imports run down, light steps need no torch, the command line starts at once."""

import re
import subprocess
import sys
import tomllib
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
    "atelier.steps.label_report",
    "atelier.annotate.rich_page",
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


def test_a_report_looks_at_raw_data_of_every_form_with_the_light_set_alone() -> None:
    """The step ``report`` runs in the image ``ops`` and shows pictures of COCO, JourneyDB, LAION and SA-1B."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = {name for each in project["optional-dependencies"].values() for name in map(_package, each)}
    absent = sorted(extras - set(map(_package, project["dependencies"])) - {"atelier"})
    assert {"torch", "sklearn"} <= set(absent)
    sources = (
        "coco_source",
        "rich_source",
        "captioned_source",
        "captioned_parts",
        "img2dataset_source",
        "sa1b_source",
        "filters",
    )
    code = (
        "import sys, importlib\n"
        f"sys.modules |= dict.fromkeys({absent!r})\n"
        "import atelier.steps.canvases\n"
        f"for name in {sources!r}: importlib.import_module('atelier.data.' + name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert result.returncode == 0, result.stderr[-2000:]


def _package(requirement: str) -> str:
    """``"scikit-learn>=1.9"`` as it is imported."""
    name = re.split(r"[\[=<>~! ]", requirement, maxsplit=1)[0]
    return {"scikit-learn": "sklearn"}.get(name, name.replace("-", "_"))


def test_help_imports_no_library() -> None:
    code = (
        "import sys, atelier.cli\n"
        "try:\n    atelier.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('kfp', 'mlflow', 'pydantic', 'yaml', 'boto3', 'numpy', 'fsspec') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[]"
