"""A pipeline with branches under kfp.local: one branch's text reaches the rest, a failure ends the run at once."""

import os
import signal
import textwrap
from collections.abc import Callable

import pytest

from .conftest import Project

Until = Callable[[Callable[[], bool]], None]

PIPELINE = """
from kfp import dsl
from kfp.dsl import Dataset, Input, Output
from pipelines.tiny import doubled, numbers, shim

@dsl.component(**shim)
def spoken(out: Input[Dataset]) -> str:
    return "made here"

@dsl.component(**shim)
def found(place: str) -> str:
    return place

CHOICES = {"make": ("auto", "true", "false")}

def settle(arguments):
    from atelier.errors import ConfigError
    if arguments["make"] == "false" and not arguments["place"]:
        raise ConfigError("there is nothing to take", "SET='make=true'")
    return {"make": "true" if arguments["make"] == "auto" else arguments["make"]}

@dsl.pipeline(name="branching")
def pipeline(artifacts: str = "", profile: str = "laptop", make: str = "auto", place: str = "", fail: str = "",
             delay: float = 0.0):
    first = numbers(count=3, artifacts=artifacts)
    with dsl.If(make == "true", "make"):
        inner = doubled(numbers=first.outputs["out"], fail=fail, text="inner", delay=delay, artifacts=artifacts)
        made = spoken(out=inner.outputs["out"])
    with dsl.Else("take"):
        taken = found(place=place)
    text = dsl.OneOf(made.outputs["Output"], taken.outputs["Output"])
    doubled(numbers=first.outputs["out"], text=text, artifacts=artifacts)
    other = numbers(count=5, artifacts=artifacts)
    doubled(numbers=other.outputs["out"], text="independent", artifacts=artifacts)
"""


@pytest.fixture
def branching(project: Project) -> Project:
    (project.root / "pipelines" / "branching.py").write_text(textwrap.dedent(PIPELINE))
    return project


def texts(project: Project) -> list[str]:
    return sorted((output / "text.txt").read_text() for output in project.outputs("doubled"))


def test_each_branch_hands_its_text_on(branching: Project) -> None:
    code, text = branching.call("run", "branching")
    assert code == 0, text
    assert "make=true" in text
    assert texts(branching) == ["independent", "inner", "made here"]
    assert branching.summary()["parameters"]["make"] == "true"
    assert "/6 doubled" in text, "the steps of the other branch are not counted"
    code, text = branching.call("run", "branching", "--set", "make=false", "--set", "place=a 'quoted' place")
    assert code == 0, text
    assert "a 'quoted' place" in texts(branching)


def test_what_the_pipeline_refuses_is_told_before_anything_runs(branching: Project) -> None:
    code, text = branching.call("run", "branching", "--set", "make=false")
    assert code == 2
    assert "there is nothing to take" in text
    assert not branching.runs()


def test_a_failed_step_ends_the_run_though_others_do_not_need_it(branching: Project) -> None:
    code, text = branching.call("run", "branching", "--set", "fail=data")
    assert code == 1
    assert "step doubled failed: sa_000001.tar is cut off" in text
    assert [step["status"] for step in branching.summary()["steps"]].count("failed") == 1
    assert branching.steps()[-1]["status"] == "failed", "nothing is started after it"


def test_one_interrupt_ends_a_run_with_branches(branching: Project, until: Until) -> None:
    process = branching.start("run", "branching", "--set", "delay=2")
    work = branching.root / ".atelier" / "artifacts" / ".work"
    until(lambda: any(work.glob("doubled-*/000.txt")))
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 130, text
    assert branching.summary()["status"] == "interrupted"
    assert branching.steps()[-1]["status"] == "interrupted"
