"""The wrapper that looks first, run for real under kfp.local: it goes on, or ends after one small step."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .conftest import PIPELINE, Project

COMPONENTS = Path(__file__).parents[2] / "components"


def with_a_model(project: Project) -> None:
    """Gives the tiny pipeline what the real ones have: data by number and seed, and a model's name."""
    folder = project.root / "components"
    folder.mkdir()
    for name in ("__init__.py", "images.py", "look.py"):
        shutil.copy(COMPONENTS / name, folder / name)
    text = PIPELINE.replace('name="tiny"', 'name="model"')
    text = text.replace("count: int = 3, delay", 'images: int = 3, seed: int = 0, model_name: str = "probe", delay')
    text = text.replace("numbers(count=count, artifacts", "numbers(count=images, artifacts")
    (project.root / "pipelines" / "model.py").write_text(text)
    steps = project.root / "code" / "tiny_steps.py"
    text = steps.read_text()
    for old, new in (
        ('name="numbers"', 'name="source"'),
        ('params={"count": count}', 'params={"images": count, "seed": 0}'),
        ('inputs={"numbers": numbers}', 'inputs={"source": numbers}'),
        ('ctx.inputs["numbers"]', 'ctx.inputs["source"]'),
        ('inputs={"doubled": doubled}', 'inputs={"shards": doubled}'),
        ('ctx.inputs["doubled"]', 'ctx.inputs["shards"]'),
    ):
        assert old in text
        text = text.replace(old, new)
    steps.write_text(text)


def champion(project: Project, uri: str) -> None:
    """Registers a model where the project's runs are tracked."""
    code = f"from atelier.tracking.registry import register; register('probe', {uri!r}, None, {{}}, {{}}, passed=True)"
    tracked = {"MLFLOW_TRACKING_URI": f"sqlite:///{project.root}/mlflow.db"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **project.env, **tracked}, check=True)


def test_the_same_data_end_it_and_other_data_do_not(project: Project) -> None:
    with_a_model(project)
    code, text = project.call("run", "model", "--only-if-new")
    assert code == 0, text
    assert [step["name"] for step in project.steps()] == ["look", "source", "doubled", "total"]
    assert "no champion yet" in project.steps()[0]["output"]["metadata"]["why"]
    assert re.search(r"4/4 total", text)
    facts = project.summary()["artifacts"]
    champion(project, facts["total"])

    code, text = project.call("run", "model", "--only-if-new")
    assert code == 0, text
    assert [step["name"] for step in project.steps()] == ["look"]
    assert project.summary()["status"] == "succeeded"
    assert "nothing new" in project.steps()[0]["output"]["metadata"]["why"]

    code, text = project.call("run", "model", "--only-if-new", "--set", "images=5")
    assert code == 0, text
    assert [step["name"] for step in project.steps()] == ["look", "source", "doubled", "total"]

    code, text = project.call("run", "model")
    assert code == 0, text
    assert [step["name"] for step in project.steps()] == ["source", "doubled", "total"], "a run by hand asks nothing"
