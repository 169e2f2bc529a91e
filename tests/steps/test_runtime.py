"""run_step: the key, the cache, the lock, what a failure leaves behind."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import ConfigError, DataError
from atelier.steps.artifact import read_input, write_metrics, write_output
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

Produce = Callable[[StepContext], tuple[str, dict[str, Any]]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path))
    for name in ("ATELIER_RUN_DIR", "ATELIER_RUN_ID", "_KFP_RUNTIME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def call(project: Path, produce: Produce, **changes: Any) -> Manifest:
    given: dict[str, Any] = {
        "name": "probe",
        "version": 1,
        "module": "atelier.steps.source",
        "produce": produce,
        "inputs": {},
        "params": {"a": 1},
        "artifacts": str(project / "artifacts"),
    }
    return run_step(**(given | changes))


class Writer:
    """A produce that counts its calls."""

    def __init__(self, text: str = "x") -> None:
        self.calls, self.text = 0, text

    def __call__(self, ctx: StepContext) -> tuple[str, dict[str, Any]]:
        self.calls += 1
        ctx.note(host_seconds=1.5)
        (ctx.out.path / "file.txt").write_text(self.text)
        return "thing", {"count": 3, "metrics": {"m": 0.5}}


def test_second_call_is_a_hit_and_every_part_of_the_key_counts(project: Path) -> None:
    writer = Writer()
    first = call(project, writer)
    assert call(project, writer) == first
    assert writer.calls == 1
    assert Path(first.uri).parent == project / "artifacts" / "probe"
    assert first.made_by["params"] == {"a": 1}
    assert first.made_by["notes"] == {"host_seconds": 1.5}
    other = Manifest(kind="k", uri="u", files=(), metadata={"n": 1}, made_by={})
    changes: list[dict[str, Any]] = [
        {"params": {"a": 2}},
        {"version": 2},
        {"name": "probe2"},
        {"inputs": {"x": other}},
        {"module": "atelier.steps.report"},
        {"extra_modules": ("atelier.progress",)},
    ]
    uris = {call(project, writer, **change).uri for change in changes}
    assert len(uris) == len(changes)
    assert writer.calls == 1 + len(changes)
    # equal content has an equal digest, wherever and whenever it was made
    assert call(project, writer, params={"a": 2}).digest == first.digest


def test_deleted_or_cut_file_is_a_miss(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    writer = Writer("long text")
    made = call(project, writer)
    (Path(made.uri) / "file.txt").write_text("cut")
    assert call(project, writer).digest == made.digest
    assert writer.calls == 2
    assert "file.txt" in capfd.readouterr().err


def test_failure_leaves_no_output_and_work_to_go_on_with(project: Path) -> None:
    def breaks(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        (ctx.out.path / "part.txt").write_text("1")
        ctx.out.commit("part.txt")
        raise DataError("bad", "mend it")

    with pytest.raises(DataError):
        call(project, breaks)
    assert not list((project / "artifacts" / "probe").glob("*/manifest.json"))

    def goes_on(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        assert set(ctx.out.committed()) == {"part.txt"}
        return "thing", {}

    assert [entry.path for entry in call(project, goes_on).files] == ["part.txt"]


def test_two_at_once_make_it_once(project: Path) -> None:
    writer = Writer()

    def slow(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        time.sleep(0.3)
        return writer(ctx)

    threads = [threading.Thread(target=call, args=(project, slow)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.calls == 1


def test_ledger_lines(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = project / "runs" / "one"
    monkeypatch.setenv("ATELIER_RUN_DIR", str(run))
    call(project, Writer())
    call(project, Writer())
    with pytest.raises(ZeroDivisionError):
        call(project, lambda ctx: (str(1 // 0), {}), params={"a": 9})
    records = [json.loads(path.read_text()) for path in sorted((run / "steps").glob("[0-9]*.json"))]
    assert [(record["number"], record["status"]) for record in records] == [(1, "done"), (2, "cached"), (3, "failed")]
    assert records[0]["output"]["metrics"] == {"m": 0.5}
    assert records[2]["error"]["what"].startswith("ZeroDivisionError")
    assert all(record["seconds"] < 5 for record in records)


def test_no_artifacts_is_an_error_that_says_so(project: Path) -> None:
    with pytest.raises(ConfigError, match="artifacts is empty"):
        call(project, Writer(), artifacts="")


class Artifact:
    """What KFP hands a component, as far as we use it."""

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = str(path), dict[str, Any]()


def test_artifact_is_the_manifest(project: Path) -> None:
    made = call(project, Writer())
    artifact = Artifact(project / "deep" / "out")
    write_output(artifact, made)
    assert read_input(artifact) == made
    assert artifact.metadata["digest"] == made.digest
    assert artifact.metadata["count"] == 3
    write_metrics(artifact, made)
    assert artifact.metadata["m"] == 0.5
    (project / "deep" / "out").write_text("not a manifest")
    with pytest.raises(DataError):
        read_input(artifact)
    with pytest.raises(DataError, match="cannot be read"):
        read_input(Artifact(project / "missing"))
