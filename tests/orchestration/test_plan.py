"""Plans: what is reckoned, what is refused, what is found in the cache; nothing is run and nothing written."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import ConfigError
from atelier.orchestration import plan, plan_text, profile
from atelier.orchestration.cached import Found
from atelier.orchestration.gpus import GPUS, gpu
from atelier.orchestration.plan import Options, make
from tests.orchestration.conftest import Project

PROJECT = Path(__file__).parents[2]


def paper(pipeline: str = "igligen_xl_512", options: Options = Options(), **given: str) -> plan.Plan:  # noqa: B008
    return make(PROJECT, pipeline, given, profile.load(PROJECT, "paper"), options, look_at_cache=False)


def test_the_published_training_on_sixteen_h200() -> None:
    made = paper()
    (training,) = made.trainings
    assert (training.nodes, training.processes_per_node, training.gpu) == (2, 8, "h200")
    assert (training.config.process_micro_batch, training.config.accumulation) == (4, 1)
    # 16 GPUs of 989 TFLOP/s at 35 %, 6.22 TFLOP a sample; 500,000 steps of 64.
    rate = 16 * 989e12 * 0.35 / 6.2196e12
    assert training.samples_per_s == pytest.approx(rate)
    assert training.hours == pytest.approx(500_000 * 64 / rate / 3600)
    assert training.gpu_hours == pytest.approx(16 * 500_000 * 64 / rate / 3600)
    assert training.cost == pytest.approx(4.0 * (training.gpu_hours or 0))
    assert training.stage == 1
    assert "lowest that bf16 can have" in training.reason
    made.refuse()
    (data,) = made.data
    assert data.examples == 11_185_362
    assert data.raw_bytes == pytest.approx(11e12, rel=0.01), "a thousand tars of 11 GB"
    assert data.checkpoint_bytes == 12 * 1_812_438_988
    assert (made.gpu_hours or 0) > (training.gpu_hours or 0), "encoding is counted"
    preprocess = next(step for step in made.steps if step.function == "preprocess")
    assert (preprocess.settings.gpus, preprocess.image) == (8, "registry.example.com/atelier/python-train:0.1.0")


def test_what_does_not_fit_is_refused_and_what_would_is_named() -> None:
    made = paper(options=Options(gpu="a10", nodes=1))
    (training,) = made.trainings
    assert training.stage is None
    with pytest.raises(ConfigError, match=r"train does not fit: no ZeRO stage fits.*would fit with a micro-batch of 4"):
        made.refuse()


def test_a_stage_that_is_too_low_is_refused_and_a_higher_one_is_taken() -> None:
    tight = Options(gpu="a100-40g", nodes=1, gpus_per_node=8)
    made = paper(options=tight)
    (training,) = made.trainings
    assert training.stage is not None
    assert training.stage >= 2
    assert "ZeRO 1 would need" in training.reason
    assert plan.zero_stages(made) == training.stage
    with pytest.raises(ConfigError, match="ZeRO 1 does not fit"):
        paper(options=tight, zero_stage="1").refuse()
    paper(options=tight, zero_stage="3").refuse()


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size 64 is not divisible by processes 24"):
        paper(options=Options(nodes=3))
    with pytest.raises(ConfigError, match="processes=8 is not the 2 nodes × 8 processes"):
        paper(processes="8")
    with pytest.raises(ConfigError, match=r"no GPU 'h20o'.*h200"):
        paper(options=Options(gpu="h20o"))
    with pytest.raises(ConfigError, match="has no unit for bf16"):
        paper(options=Options(gpu="v100", gpus_per_node=64, nodes=1))
    with pytest.raises(ConfigError, match="no parameter 'stepz'"):
        paper(stepz="3")


def test_what_is_in_the_cache_costs_nothing() -> None:
    made = paper()
    (training,), (data,) = made.trainings, made.data
    assert made.gpu_hours == pytest.approx((training.gpu_hours or 0) + (data.encoding_gpu_hours or 0))
    there = [dataclasses.replace(step, found=Found(True)) if step.task == "preprocess" else step for step in made.steps]
    assert dataclasses.replace(made, steps=tuple(there)).gpu_hours == pytest.approx(training.gpu_hours)
    every = [dataclasses.replace(step, found=Found(True)) for step in made.steps]
    assert dataclasses.replace(made, steps=tuple(every)).gpu_hours == 0


def test_what_is_said_twice_must_agree() -> None:
    with pytest.raises(ConfigError, match="nodes is 3 in train_overrides"):
        paper(train_overrides='{"nodes": 3}')
    laptop = profile.load(PROJECT, "laptop")
    with pytest.raises(ConfigError, match="artifacts is given twice"):
        make(PROJECT, "igligen_xl_512", {"artifacts": "s3://a/b"}, laptop, artifacts="s3://c/d", look_at_cache=False)


def test_both_stages_are_planned_where_both_are_trained() -> None:
    both = paper("igligen_xl_1024", train_stage1="true")
    assert [each.recipe for each in both.trainings] == ["igligen_xl", "igligen_xl:1024"]
    assert both.trainings[1].config.process_micro_batch == 1
    assert [each.recipe for each in paper("igligen_xl_1024", train_stage1="false").trainings] == ["igligen_xl:1024"]


def test_without_a_gpu_there_is_a_plan_and_no_time() -> None:
    made = make(PROJECT, "igligen_xl_512", {}, profile.load(PROJECT, "laptop"), look_at_cache=False)
    (training,) = made.trainings
    assert (training.nodes, training.processes_per_node, training.hours, made.gpu_hours) == (1, 2, None, None)
    text = "\n".join(plan_text.lines(made))
    assert "no GPU is named" in text
    assert "8,000 examples" in text
    made.refuse()


def test_the_text_and_the_record_say_the_same() -> None:
    made = paper(train_steps="1000")
    text, record = "\n".join(plan_text.lines(made)), plan_text.record(made)
    assert "train_steps=1000" in text
    assert "1,000 steps of 64" in text
    assert json.loads(json.dumps(record))["trainings"][0]["steps"] == 1000
    assert "  ZeRO 1 needs " in text
    assert "35% of the peak (assumed)" in text


@pytest.mark.parametrize("kind", GPUS)
def test_every_gpu_has_a_peak(kind: str) -> None:
    assert gpu(kind.upper()).peak("fp16")


def planned(project: Project, *words: str, **env: str) -> dict[str, Any]:
    code, said = project.call(
        "plan", "tiny", "--profile", str(PROJECT / "profiles/laptop.yaml"), "--json", *words, **env
    )
    assert code == 0, said
    return json.loads(said)  # type: ignore[no-any-return]


def test_the_cache_is_asked_and_nothing_is_made(project: Project) -> None:
    """A run's own outputs are found, a changed parameter's are not, and asking writes nothing."""
    assert project.call("run", "tiny", "--set", "count=5")[0] == 0
    here = ("--artifacts", ".atelier/artifacts")
    before = files(project.root)
    found = planned(project, *here, "--set", "count=5")["steps"]
    assert [(step["task"], step["cached"]) for step in found] == [("numbers", True), ("doubled", True), ("total", True)]
    assert all(step["bytes"] for step in found)
    assert [step["cached"] for step in planned(project, *here, "--set", "count=6")["steps"]] == [False] * 3
    later = planned(project, *here, "--set", "count=5", "--set", "text=other")["steps"]
    assert [step["cached"] for step in later] == [True, False, False]
    assert files(project.root) == before


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if "__pycache__" not in path.parts and path.name != "code.json")


def test_a_place_that_cannot_be_asked_is_named(project: Project) -> None:
    assert "placeholder" in planned(project, "--artifacts", "s3://BUCKET/atelier")["cache"]
    silent = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    assert "does not answer" in planned(project, "--artifacts", "s3://there/is", **silent)["cache"]


def command(*words: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "atelier.cli", "plan", *words], capture_output=True, text=True, cwd=PROJECT
    )


def test_the_command() -> None:
    done = command("igligen_xl_512", "--gpu", "h100", "--nodes", "4", "--price", "2.5", "--mfu", "0.4", "--json")
    assert done.returncode == 0, done.stderr
    (training,) = json.loads(done.stdout)["trainings"]
    assert (training["nodes"], training["gpu"], training["mfu"]) == (4, "h100", 0.4)
    assert training["cost"] == pytest.approx(2.5 * training["gpu_hours"])
    refused = command("igligen_xl_512", "--gpu", "a10", "--nodes", "1")
    assert refused.returncode == 2
    assert "no ZeRO stage fits" in refused.stdout, "the plan is shown all the same"
    assert "does not fit" in refused.stderr
    for words, said in (
        (("--nodes", "0"), "NODES=0"),
        (("--mfu", "3"), "MFU=3"),
        (("--price", "x"), "PRICE=x"),
        (("no_such",), "no pipeline"),
        (("--profile", "papre"), "papre"),
    ):
        done = command(*words)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) < 12
