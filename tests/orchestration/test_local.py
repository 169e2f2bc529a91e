"""A pipeline run under kfp.local by the command line: cache, failure, stop, kill, and what the ledger says of each."""

import json
import os
import shutil
import signal
from collections.abc import Callable

import pytest

from atelier.orchestration.ledger import alive

from .conftest import Project

Until = Callable[[Callable[[], bool]], None]


def cached(project: Project) -> dict[str, bool]:
    return {step["name"]: step["cached"] for step in project.summary()["steps"]}


def test_run_then_cached_then_changed_parameter_then_deleted_file(project: Project) -> None:
    code, text = project.call("run", "tiny")
    assert code == 0, text
    assert "3/3 total" in text
    summary = project.summary()
    assert summary["status"] == "succeeded"
    assert summary["pipeline"] == "tiny"
    assert summary["metrics"] == {"total": 6}
    assert set(summary["artifacts"]) == {"numbers", "doubled", "total"}
    assert summary["mlflow_run_id"]
    assert cached(project) == {"numbers": False, "doubled": False, "total": False}
    (run,) = project.runs()
    assert "text is" in (run / "logs" / "02-doubled.log").read_text()

    code, text = project.call("run", "tiny")
    assert code == 0, text
    assert "2/3 doubled     cached" in text
    assert cached(project) == {"numbers": True, "doubled": True, "total": True}
    assert project.summary()["metrics"] == {"total": 6}
    assert all(step["seconds"] < 1 for step in project.summary()["steps"])

    # only what depends on the parameter runs again
    code, text = project.call("run", "tiny", ATELIER_SET="text=other")
    assert code == 0, text
    assert cached(project) == {"numbers": True, "doubled": False, "total": False}

    # a hit whose file is gone is a miss
    (output,) = project.outputs("numbers")
    (output / "numbers.json").unlink()
    code, text = project.call("run", "tiny")
    assert code == 0, text
    assert cached(project) == {"numbers": False, "doubled": True, "total": True}


def test_a_failed_step_names_itself_its_log_and_what_to_try(project: Project) -> None:
    cases = {
        "data": ["step doubled failed: sa_000001.tar is cut off", "try: fetch it again", "02-doubled.log"],
        "early": ["step doubled failed: fail=early is no good value", "try: leave it out", "02-doubled.log"],
        "bug": ["step doubled failed: ValueError: a bug", "Traceback", "02-doubled.log"],
        "die": ["step doubled failed: the step's process ended without a word", "out of memory"],
    }
    for fail, said in cases.items():
        code, text = project.call("run", "tiny", "--set", f"fail={fail}")
        assert code == 1
        for part in said:
            assert part in text
        assert ("Traceback" in text) == (fail == "bug")
        summary = project.summary()
        assert summary["status"] == "failed"
        assert [step["status"] for step in summary["steps"]] == ["done", "failed"]
    code, text = project.call("run", "tiny")
    assert code == 0, text


def test_ctrl_c_ends_a_step_and_the_next_run_goes_on_where_it_stopped(project: Project, until: Until) -> None:
    process = project.start("run", "tiny", "--set", "delay=0.2", "--set", "count=25")
    work = project.root / ".atelier" / "artifacts" / ".work"
    until(lambda: len(list(work.glob("doubled-*/*.txt"))) >= 3)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 130, text
    assert "goes on from here" in text
    assert "Traceback" not in text
    assert project.summary()["status"] == "interrupted"
    assert project.steps()[-1]["status"] == "interrupted"
    assert not alive(project.steps()[-1]["pid"])

    code, text = project.call("resume")
    assert code == 0, text
    assert project.summary()["metrics"] == {"total": 600}
    (output,) = project.outputs("doubled")
    assert json.loads((output / "manifest.json").read_text())["made_by"]["notes"]["resumed"] >= 3


def test_kill_9_of_the_command_line_leaves_no_orphan_and_the_next_run_goes_on(
    project: Project, until: Until, leftovers: list[int]
) -> None:
    process = project.start("run", "tiny", "--set", "delay=0.2", "--set", "count=25")
    work = project.root / ".atelier" / "artifacts" / ".work"
    until(lambda: len(list(work.glob("doubled-*/*.txt"))) >= 3)
    step = project.steps()[-1]["pid"]
    leftovers.append(step)
    process.kill()
    process.wait()
    until(lambda: not alive(step) or _zombie(step))
    code, text = project.call("status")
    assert code == 0
    assert "killed" in text

    code, text = project.call("run", "tiny", "--set", "count=25")
    assert code == 0, text
    (output,) = project.outputs("doubled")
    assert json.loads((output / "manifest.json").read_text())["made_by"]["notes"]["resumed"] >= 3


def test_kill_9_of_a_step_fails_the_run(project: Project, until: Until) -> None:
    process = project.start("run", "tiny", "--set", "delay=0.2", "--set", "count=25")
    work = project.root / ".atelier" / "artifacts" / ".work"
    until(lambda: len(list(work.glob("doubled-*/*.txt"))) >= 3)
    os.kill(project.steps()[-1]["pid"], signal.SIGKILL)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "step doubled failed" in text
    assert project.summary()["status"] == "failed"


def test_parameters_reach_no_shell_and_arrive_unchanged(project: Project) -> None:
    value = "$(touch pwned) `touch pwned` ; touch pwned ' \" \\ \n x https://host/python3/a&b {}$$0 %s é"
    code, text = project.call("run", "tiny", "--set", f"text={value}")
    assert code == 0, text
    (output,) = project.outputs("doubled")
    assert (output / "text.txt").read_text() == value
    assert not list(project.root.rglob("pwned"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "tiny", "--set", "cuont=3"], "did you mean count?"),
        (["run", "tiny", "--set", "count=three"], "count='three' is no whole number"),
        (["run", "tiny", "--set", "profile=labtop"], "did you mean laptop?"),
        (["run", "tiny", "--set", "text={{workflow.name}}"], "the value of text holds {{"),
        (["run", "tiny", "--set", "count"], "no name=value"),
        (["run", "tinny"], "did you mean tiny?"),
        (["run", "tiny", "--profile", "laptop", "--set", "profile=paper"], "given twice"),
        (["logs", "--run", "2019"], "holds no run"),
    ],
)
def test_wrong_words_are_refused_before_anything_starts(project: Project, words: list[str], said: str) -> None:
    code, text = project.call(*words)
    assert code == 2
    assert said in text
    assert "Traceback" not in text
    assert not project.runs()


def test_places_that_cannot_be_written_are_refused_before_anything_starts(project: Project) -> None:
    (project.root / "file").write_text("")
    code, text = project.call("run", "tiny", "--artifacts", str(project.root / "file" / "below"))
    assert code == 4, text
    assert "file" in text
    assert not project.runs()
    code, text = project.call("run", "tiny", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert code == 5, text
    assert "127.0.0.1:9" in text
    assert not project.runs()


def test_status_logs_list_resume(project: Project) -> None:
    assert project.call("run", "tiny", "--set", "count=2")[0] == 0
    code, text = project.call("status")
    assert code == 0
    assert "succeeded" in text
    assert "count=2" in text
    code, text = project.call("status", project.runs()[0].name[:10])
    assert "02 doubled" in text
    assert "total 2" in text
    code, text = project.call("logs", "doubled")
    assert "text is" in text
    code, text = project.call("logs", "double")
    assert code == 2
    assert "did you mean doubled?" in text
    code, text = project.call("list")
    assert "tiny: 3 steps" in text
    assert "laptop | paper" in text
    assert "How many numbers." in text
    assert project.call("resume")[0] == 0
    assert all(cached(project).values())
    shutil.rmtree(project.root / "runs")
    code, text = project.call("status")
    assert code == 0


def _zombie(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
