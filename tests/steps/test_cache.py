"""The cache on S3 and in a pod: a hit is one only while every byte is there, and code is known by its content."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

import atelier
from atelier.errors import Preempted
from atelier.steps.code_digest import code_digest
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import MANIFEST, Manifest
from tests.servers import BUCKET

FILES = {"a.bin": "aaaa", "deep/b.bin": "bbbb", "deep/er/c.bin": "cccc"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path))
    return tmp_path


def made(artifacts: str, calls: list[str]) -> Manifest:
    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        calls.append(ctx.key)
        for name, text in FILES.items():
            path = ctx.out.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return "thing", {}

    return run_step(
        name="probe",
        version=1,
        module="atelier.steps.source",
        produce=produce,
        inputs={},
        params={},
        artifacts=artifacts,
    )


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("harm", ["deleted", "cut"])
def test_a_hit_whose_objects_are_gone_is_a_miss(s3_bucket: str, project: Path, name: str, harm: str) -> None:
    client = boto3.session.Session().client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    calls: list[str] = []
    first = made(s3_bucket, calls)
    assert made(s3_bucket, calls) == first
    assert len(calls) == 1
    key = f"{first.uri}/{name}".removeprefix(f"s3://{BUCKET}/")
    if harm == "deleted":
        client.delete_object(Bucket=BUCKET, Key=key)
    else:
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    assert made(s3_bucket, calls).digest == first.digest
    assert len(calls) == 2
    whole = {
        name: client.get_object(Bucket=BUCKET, Key=f"{first.uri}/{name}".removeprefix(f"s3://{BUCKET}/"))
        for name in FILES
    }
    assert {name: answer["Body"].read().decode() for name, answer in whole.items()} == FILES
    assert made(s3_bucket, calls).digest == first.digest
    assert len(calls) == 2


def test_a_step_that_was_preempted_goes_on_in_a_new_pod(
    s3_bucket: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        seen.append(set(ctx.out.committed()))
        (ctx.out.path / "half.bin").write_text("half")
        ctx.out.commit("half.bin", drop_local=True)
        if len(seen) == 1:
            raise Preempted("the node is taken away", "run again")
        return "thing", {}

    def run() -> Manifest:
        return run_step(
            name="probe", version=1, module="atelier.steps.source", produce=produce, inputs={}, params={},
            artifacts=s3_bucket,
        )  # fmt: skip

    with pytest.raises(Preempted):
        run()
    monkeypatch.setenv("ATELIER_PROJECT", str(project / "another-node"))
    run()
    assert seen == [set(), {"half.bin"}]


def test_an_installed_package_has_the_digests_of_the_source_tree(tmp_path: Path) -> None:
    """In an image the package lies elsewhere, beside compiled files; what counts is the code."""
    site = tmp_path / "site-packages"
    shutil.copytree(Path(atelier.__file__).parent, site / "atelier", ignore=shutil.ignore_patterns("assets"))
    modules = ("atelier.steps.preprocess", "atelier.steps.train", "atelier.steps.register")
    code = (
        "import atelier, sys; from atelier.steps.code_digest import code_digest\n"
        f"assert atelier.__file__.startswith({str(site)!r}), atelier.__file__\n"
        f"print(*[code_digest(each, ('atelier.recipes.igligen_xl',)) for each in {modules!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [code_digest(each, ("atelier.recipes.igligen_xl",)) for each in modules]


def test_a_step_in_a_pod_writes_to_its_scratch_alone(s3_bucket: str, tmp_path: Path) -> None:
    """No run folder, no project, another HOME; the variables are those that ``compile`` writes."""
    scratch, elsewhere = tmp_path / "scratch", tmp_path / "elsewhere"
    scratch.mkdir()
    elsewhere.mkdir()
    code = (
        "from atelier.steps.runtime import run_step\n"
        "def produce(ctx):\n"
        "    (ctx.out.path / 'x').write_text(ctx.run_id)\n"
        "    return 'thing', {}\n"
        "made = run_step(name='probe', version=1, module='atelier.steps.source', produce=produce, inputs={},\n"
        f"    params={{}}, artifacts={s3_bucket!r})\n"
        "print(made.made_by['run'], made.uri)\n"
    )
    kept = {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == "PATH"}
    variables = {name: str(scratch) for name in ("ATELIER_PROJECT", "HOME", "TMPDIR")}
    source = str(Path(atelier.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={**kept, **variables, "ATELIER_RUN_ID": "run-1", "_KFP_RUNTIME": "true", "PYTHONPATH": source},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"run-1 {s3_bucket}/probe/" in done.stdout
    assert not list(elsewhere.iterdir())
    assert [path.name for path in scratch.iterdir()] == [".atelier"]
