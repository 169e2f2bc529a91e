"""Parent and child runs on SQLite, seen through MLflow's own client."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from atelier.errors import DataError, Preempted
from atelier.tracking.runs import attach, child_run, end_parent, parent_run
from atelier.tracking.service import client, default_uri


def test_parent_and_child_with_everything_in_them(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = parent_run("run-1", "igligen_xl_512", {"profile": "laptop", "train": {"steps": 5, "lr": 1e-3}})
    assert parent_run("run-1", "igligen_xl_512", {"profile": "laptop"}) == parent, "a resumed run is the same run"
    monkeypatch.setenv("MLFLOW_RUN_ID", parent)
    (tmp_path / "notes.txt").write_text("hello")
    with child_run("train", {"steps": 5}, {"atelier.step": "train", "atelier.key": "k1"}) as run:
        run_id = run.run_id()
        assert run_id is not None
        for step in range(3):
            run.log_metrics({"loss": 1.0 / (step + 1), "nan": float("nan"), "text": "no number"}, step)
        # Another process of the same step (rank 0) writes to the same run.
        beside = attach(run_id)
        beside.log_metrics({"loss": 0.1}, 3)
        for step, colour in ((10, "red"), (20, "blue")):
            beside.log_image(Image.new("RGB", (8, 8), colour), "preview", step)
        beside.close()
        run.log_artifact(tmp_path / "notes.txt")
    end_parent(parent, "FINISHED", {"layout_accuracy": 0.89})

    connected = client(store)
    seen = connected.get_run(run_id)
    assert seen.info.status == "FINISHED"
    assert seen.info.run_name == "train"
    assert seen.data.tags["mlflow.parentRunId"] == parent
    assert seen.data.tags["atelier.step"] == "train"
    assert seen.data.params == {"steps": "5"}
    history = sorted((metric.step, metric.value) for metric in connected.get_metric_history(run_id, "loss"))
    assert history == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.1)]
    assert set(seen.data.metrics) == {"loss"}
    images = [file.path for file in connected.list_artifacts(run_id, "images") if file.path.endswith(".png")]
    assert sorted(path.split("+")[2] for path in images) == ["10", "20"]
    assert (tmp_path / "mlartifacts").is_dir()
    assert [file.path for file in connected.list_artifacts(run_id)] == ["images", "notes.txt"]
    top = connected.get_run(parent)
    assert top.info.status == "FINISHED"
    assert top.data.params == {"profile": "laptop", "train.steps": "5", "train.lr": "0.001"}
    assert top.data.metrics == {"layout_accuracy": 0.89}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DataError("a tar is truncated"), "FAILED"),
        (Preempted("asked to end"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_status_tells_how_it_ended(store: str, error: BaseException, status: str) -> None:
    ids = []

    def step() -> None:
        with child_run("download") as run:
            ids.append(run.run_id())
            raise error

    with pytest.raises(type(error)):
        step()
    assert client(store).get_run(ids[0]).info.status == status


def test_run_of_a_killed_process_is_ended_by_its_successor(store: str) -> None:
    code = (
        "import os; from atelier.tracking.runs import child_run\n"
        "with child_run('train', tags={'atelier.key': 'k'}) as run:\n"
        "    print(run.run_id(120), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    killed = done.stdout.strip()
    assert client(store).get_run(killed).info.status == "RUNNING"
    with child_run("train", tags={"atelier.key": "k"}) as run:
        assert run.run_id(120) != killed
    assert client(store).get_run(killed).info.status == "KILLED"


def test_run_injected_by_a_backend_is_used_itself(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connected = client(store)
    theirs = connected.create_run(connected.create_experiment("kfp")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    with child_run("train", {"steps": 3}) as run:
        assert run.run_id() == theirs
    assert connected.get_run(theirs).data.params == {"steps": "3"}


def test_what_the_server_refuses_is_named_and_the_rest_goes_on(store: str, capfd: pytest.CaptureFixture[str]) -> None:
    with child_run("train") as run:
        run_id = run.run_id()
        run.log_metrics({"bad name!?": 1.0}, 0)
        run.flush()
        run.log_metrics({"loss": 0.5}, 1)
    assert client(store).get_run(run_id).data.metrics == {"loss": 0.5}
    assert "refuses a record" in capfd.readouterr().err


def test_first_use_by_several_processes_at_once(tmp_path: Path) -> None:
    code = "import sys; from atelier.tracking.service import client; client(sys.argv[1]).create_experiment(sys.argv[2])"
    uri = default_uri(tmp_path)
    together: list[Any] = [
        subprocess.Popen([sys.executable, "-c", code, uri, f"e{n}"], stderr=subprocess.PIPE, text=True,
                         env=os.environ | {"TMPDIR": str(tmp_path / f"t{n}")})
        for n in range(2) if not (tmp_path / f"t{n}").mkdir()  # type: ignore[func-returns-value]
    ]  # fmt: skip
    for process in together:
        _, shown = process.communicate(timeout=120)
        assert process.returncode == 0, shown
    assert {e.name for e in client(uri).search_experiments()} == {"Default", "e0", "e1"}


def test_steps_of_a_cluster_run_share_a_parent_that_nobody_made(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There no command line stands above the steps; they know their run's id alone."""
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "igligen-xl-512")

    def step(name: str) -> str | None:
        with child_run(name, tags={"atelier.run_id": "kfp-run-1", "atelier.key": name}) as run:
            return run.run_id()

    with ThreadPoolExecutor(3) as pool:
        children = list(pool.map(step, ["base", "judge", "source"]))
    connected = client(store)
    experiment = connected.get_experiment_by_name("igligen-xl-512").experiment_id
    (parent,) = connected.search_runs([experiment], "tags.`atelier.role` = 'pipeline'")
    assert parent.info.run_name == "kfp-run-1"
    assert parent.info.status == "FINISHED"
    for child in children:
        assert connected.get_run(child).data.tags["mlflow.parentRunId"] == parent.info.run_id

    def fails() -> None:
        with child_run("train", tags={"atelier.run_id": "kfp-run-1"}):
            assert connected.get_run(parent.info.run_id).info.status in ("RUNNING", "FINISHED")
            raise DataError("a tar is truncated")

    with pytest.raises(DataError):
        fails()
    assert connected.get_run(parent.info.run_id).info.status == "FAILED"
    step("train")
    assert connected.get_run(parent.info.run_id).info.status == "FINISHED"
    assert parent_run("kfp-run-1", "igligen-xl-512", {}) == parent.info.run_id


def test_an_older_parent_that_is_written_late_becomes_everybodys(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy server: one step's parent was begun first and is seen last, after others have settled on theirs."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "late")
    connected = client(store)
    shared = {"atelier.run_id": "kfp-run-2", "atelier.role": "pipeline"}
    with child_run("base", tags={"atelier.run_id": "kfp-run-2"}) as run:
        child = run.run_id()
        assert child is not None
        first = connected.get_run(child).data.tags["mlflow.parentRunId"]
        experiment = connected.get_run(child).info.experiment_id
        older = connected.create_run(experiment, start_time=1, tags=shared).info.run_id
    assert connected.get_run(child).data.tags["mlflow.parentRunId"] == older
    assert connected.get_run(older).info.status == "FINISHED"
    assert connected.get_run(child).info.status == "FINISHED"
    assert connected.get_run(first).info.lifecycle_stage == "deleted", "nothing is left that says it runs"
