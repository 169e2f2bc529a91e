"""A project of its own with a tiny pipeline of real steps: numbers → doubled → total."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import atelier
from atelier.orchestration import submit
from tests.orchestration import kfp_server
from tests.orchestration.asking import DIGEST, OWN

STEPS = '''
"""Three small steps over the real runtime."""
import json, os, time
from pathlib import Path
from atelier.errors import DataError
from atelier.steps.runtime import run_step

def numbers(*, count, artifacts):
    def produce(ctx):
        (ctx.out.path / "numbers.json").write_text(json.dumps(list(range(count))))
        return "numbers", {"count": count}
    return run_step(name="numbers", version=1, module=__name__, produce=produce, inputs={},
                    params={"count": count}, artifacts=artifacts)

def doubled(*, numbers, delay, fail, text, artifacts):
    if fail == "early":
        raise DataError("fail=early is no good value", "leave it out")

    def produce(ctx):
        if fail == "data":
            raise DataError("sa_000001.tar is cut off", "fetch it again")
        if fail == "bug":
            raise ValueError("a bug")
        if fail == "die":
            os.kill(os.getpid(), 9)
        values = json.loads(ctx.inputs["numbers"].fetch("numbers.json").read_text())
        progress = ctx.progress("doubling", len(values), "numbers")
        done = ctx.out.committed()
        for value in values:
            name = f"{value:03d}.txt"
            if name not in done:
                time.sleep(delay)
                (ctx.out.path / name).write_text(f"{2 * value}")
                ctx.out.commit(name)
            progress.advance()
        print("text is", text)
        ctx.note(resumed=len(done))
        (ctx.out.path / "text.txt").write_text(text)
        return "doubled", {"count": len(values)}
    return run_step(name="doubled", version=1, module=__name__, produce=produce, inputs={"numbers": numbers},
                    params={"text": text}, artifacts=artifacts)

def total(*, doubled, artifacts):
    def produce(ctx):
        folder = ctx.inputs["doubled"].fetch_all()
        value = sum(int(path.read_text()) for path in sorted(folder.glob("0*.txt")))
        (ctx.out.path / "total.json").write_text(json.dumps(value))
        return "total", {"metrics": {"total": value}}
    return run_step(name="total", version=1, module=__name__, produce=produce, inputs={"doubled": doubled},
                    params={}, artifacts=artifacts)
'''

PIPELINE = '''
from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

shim = dict(base_image="python", install_kfp_package=False, packages_to_install=[])

@dsl.component(**shim)
def numbers(out: Output[Dataset], artifacts: str, count: int = 3):
    from atelier.steps.artifact import write_output
    from tiny_steps import numbers as run
    write_output(out, run(count=count, artifacts=artifacts))

@dsl.component(**shim)
def doubled(numbers: Input[Dataset], out: Output[Dataset], artifacts: str, delay: float = 0.0, fail: str = "",
            text: str = ""):
    from atelier.steps.artifact import read_input, write_output
    from tiny_steps import doubled as run
    write_output(out, run(numbers=read_input(numbers), delay=delay, fail=fail, text=text, artifacts=artifacts))

@dsl.component(**shim)
def total(doubled: Input[Dataset], out: Output[Dataset], metrics: Output[Metrics], artifacts: str):
    from atelier.steps.artifact import read_input, write_metrics, write_output
    from tiny_steps import total as run
    made = run(doubled=read_input(doubled), artifacts=artifacts)
    write_output(out, made)
    write_metrics(metrics, made)

CHOICES = {"profile": ("laptop", "paper")}

@dsl.pipeline(name="tiny")
def pipeline(artifacts: str = "", profile: str = "laptop", count: int = 3, delay: float = 0.0, fail: str = "",
             text: str = ""):
    """Doubles numbers.

    Args:
        count: How many numbers.
    """
    first = numbers(count=count, artifacts=artifacts)
    second = doubled(numbers=first.outputs["out"], delay=delay, fail=fail, text=text, artifacts=artifacts)
    total(doubled=second.outputs["out"], artifacts=artifacts)
'''


class Project:
    """A project folder and the command line on it, each call a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ATELIER_", "MLFLOW_"))},
            "ATELIER_PROJECT": str(root),
            # The package under test, but no other project's ``pipelines``.
            "PYTHONPATH": os.pathsep.join([str(root / "code"), str(Path(atelier.__file__).parents[1])]),
        }

    def start(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "atelier.cli", *words],
            env={**self.env, **env},
            text=True,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def call(self, *words: str, **env: str) -> tuple[int, str]:
        process = self.start(*words, **env)
        text, _ = process.communicate(timeout=120)
        return process.returncode, text

    def runs(self) -> list[Path]:
        return sorted((self.root / "runs").glob("*"))

    def summary(self) -> dict[str, Any]:
        return json.loads((self.runs()[-1] / "summary.json").read_text())

    def steps(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.runs()[-1] / "steps").glob("[0-9]*.json"))]

    def outputs(self, step: str) -> list[Path]:
        return sorted((self.root / ".atelier" / "artifacts" / step).glob("*"))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose MLflow store exists already: making its tables takes longer than all the rest of a run."""
    root = tmp_path_factory.mktemp("store")
    code = (
        "from pathlib import Path; from atelier.tracking import runs; import os\n"
        "os.environ['MLFLOW_TRACKING_URI'] = runs.default_uri(Path.cwd())\n"
        "runs.end_parent(runs.parent_run('warm-up', 'tiny', {}), 'FINISHED', {})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    return root


@pytest.fixture
def project(tmp_path: Path, empty_store: Path) -> Project:
    for path in empty_store.glob("mlflow.db*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "pipelines" / "tiny.py").write_text(textwrap.dedent(PIPELINE))
    (tmp_path / "code" / "tiny_steps.py").write_text(textwrap.dedent(STEPS))
    return Project(tmp_path)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    return wait


@pytest.fixture
def leftovers() -> Iterator[list[int]]:
    """Process ids to kill after the test, should it leave any."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[kfp_server.State]:
    for name in [name for name in os.environ if name.startswith(("KF_", "KUBE", "MLFLOW_", "ATELIER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.setattr(submit, "EVERY_S", 0.02)
    with kfp_server.serving() as state:
        yield state


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.yaml"
    pinned = ", ".join(f"{name}: 'r.example/{name}@{DIGEST}'" for name in ("ops", "train", "annotate", "evaluate"))
    path.write_text(OWN.format(references=pinned))
    return str(path)
