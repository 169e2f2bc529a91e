"""CrossFlow's five pipelines: one DAG, what each starts from, and a real passage from one model to the next."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from atelier.errors import ConfigError
from atelier.orchestration import cached, catalogue, plan, profile, walk
from atelier.orchestration.compile import compile_pipeline
from atelier.orchestration.step_checks import check_steps
from atelier.recipes.crossflow import STAGES, pipeline_of
from atelier.recipes.registry import get, predecessor_of
from tests.tracking.conftest import empty_store, store  # noqa: F401  fixtures

PROJECT = Path(__file__).parents[2]
FIRST = "crossflow_256_clip_dimr"
STARTS = {
    FIRST: "",
    "crossflow_512_clip_dimr": "crossflow-256-clip-dimr",
    "crossflow_512_t5_dimr": "crossflow-512-clip-dimr",
    "crossflow_512_t5_dit": "crossflow-512-clip-dimr",
    "crossflow_256_t5_dimr": "crossflow-256-clip-dimr",
}
STEPS = ("base", "predecessor", "source", "download", "preprocess", "train", "convert", "judge", "sample", "evaluate",
         "evaluate_text", "register", "report")  # fmt: skip


def test_there_are_five() -> None:
    assert {name for name in catalogue.names(PROJECT) if name.startswith("crossflow")} == STARTS.keys()


@pytest.mark.parametrize("name", STARTS)
def test_each_has_its_own_recipe_start_and_name(name: str) -> None:
    dag = catalogue.load(PROJECT, name)
    assert all(parameter.description for parameter in dag.parameters.values())
    own = dag.defaults()
    assert pipeline_of(own["recipe"]) == name
    assert (own["start_name"], own["start"]) == (STARTS[name], "")
    assert own["model_name"] == name.replace("_", "-")
    assert dag.parameters["recipe"].choices == ("crossflow", *(f"crossflow:{stage}" for stage in STAGES))
    called = list(walk.calls(dag, {}))
    assert sorted(call.function for call in called) == sorted(STEPS)
    recipes = {call.function: call.parameters["recipe"] for call in called if "recipe" in call.parameters}
    assert set(recipes.values()) == {own["recipe"]}
    (measuring,) = [call for call in walk.calls(dag, {"eval_batch": 3}) if call.function == "evaluate_text"]
    assert measuring.parameters["batch"] == 3
    order = [call.function for call in called]
    assert order.index("predecessor") < order.index("source"), "a start that cannot be costs no data"
    assert cached._functions(dag).keys() == set(STEPS), "so that a plan can ask each of them"
    check_steps(dag, {"start": "scratch"})
    with pytest.raises(ConfigError, match="evaluate-text would fail: a bar for fid, and nothing to measure it with"):
        check_steps(dag, {"start": "scratch", "bars": '{"fid": 12}'})
    check_steps(dag, {"profile": "paper", "pictures": "s3://b/*.jpg", "captions": "s3://b/list.jsonl"})


def test_they_differ_in_their_defaults_alone() -> None:
    made = [compile_pipeline(catalogue.load(PROJECT, name), profile.load(PROJECT, "paper")) for name in STARTS]
    shapes = []
    for each in made:
        spec = next(yaml.safe_load_all(each.text))
        inputs = spec["root"].pop("inputDefinitions")["parameters"]
        assert inputs["train_steps"]["defaultValue"] == 0
        shapes.append({name: part for name, part in spec["root"].items() if name == "dag"})
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("name", STARTS)
def test_the_plan_of_each(name: str) -> None:
    given = {"pictures": "s3://b/*.jpg", "captions": "s3://b/list.jsonl"}
    made = plan.make(PROJECT, name, given, profile.load(PROJECT, "paper"), look_at_cache=False)
    (training,) = made.trainings
    assert training.recipe == catalogue.load(PROJECT, name).defaults()["recipe"]
    assert training.footprint.trainable > 1.3e9
    assert training.stage is not None


def settled(name: str, **given: str) -> dict[str, Any]:
    dag = catalogue.load(PROJECT, name)
    assert dag.settle is not None
    return dag.settle(dag.defaults() | given)


@pytest.mark.usefixtures("store")
def test_what_is_settled_before_anything_runs() -> None:
    assert settled(FIRST) == {"start": "scratch"}
    assert settled("crossflow_512_t5_dit", start="scratch") == {}
    with pytest.raises(ConfigError, match="starts from models:/crossflow-512-clip-dimr@champion") as caught:
        settled("crossflow_512_t5_dit")
    assert "make run PIPELINE=crossflow_512_clip_dimr PROFILE=laptop" in caught.value.fix
    other = {"recipe": "crossflow:256_t5_dit", "start": "scratch"}
    names = {"model_name": "crossflow-256-t5-dit", "start_name": "crossflow-256-t5-dimr"}
    assert settled("crossflow_512_t5_dit", **other) == names
    assert settled("crossflow_512_t5_dit", **other, model_name="mine")["start_name"] == names["start_name"]
    assert settled("crossflow_512_t5_dit", recipe="crossflow")["start"] == "scratch", "the first starts from nothing"
    with pytest.raises(ConfigError, match="crossflow:512_clip_dit starts from models:/crossflow-512-clip-dimr"):
        settled(FIRST, recipe="crossflow:512_clip_dit")


SHARES = {
    "512_clip_dimr": 0.9412,
    "512_t5_dimr": 0.9148,
    "512_t5_dit": 0.2292,
    "256_t5_dimr": 0.8863,
}
"""Of the published sizes; docs/recipes/crossflow.md has them too."""


@pytest.mark.parametrize("stage", SHARES)
def test_how_much_of_each_published_size_is_taken_over(stage: str) -> None:
    from atelier.training.partial_start import compare

    recipe = f"crossflow:{stage}"
    before, after = (get(name, "paper").starting.shapes() for name in (predecessor_of(recipe), recipe))
    assert compare(after, before, "it").share == pytest.approx(SHARES[stage], abs=5e-4)
    page = (PROJECT / "docs/recipes/crossflow.md").read_text()
    assert f"{SHARES[stage]:.1%}".replace("%", " %") in page


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("store")
def test_what_one_model_learned_is_where_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step from the canvases to the third registered model of the chain, for real, a few training steps each."""
    import torch

    from atelier.convert.crossflow import TOWER, folder_weights
    from atelier.convert.training_checkpoint import trainable_state
    from atelier.models.crossflow.model import released_name
    from atelier.steps import base, convert, digits, download, predecessor, preprocess, train
    from atelier.storage.manifest import Manifest
    from atelier.tracking.registry import register
    from atelier.tracking.service import client

    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))
    artifacts = str(tmp_path / "artifacts")
    place: dict[str, Any] = {"profile": "laptop", "artifacts": artifacts}

    def trained(recipe: str, start: str, name: str = "", lr: float = 0.0) -> tuple[Manifest, Manifest, Manifest]:
        of = {"recipe": recipe, **place}
        size = get(recipe, "laptop").config.resolution
        drawn = digits.run(images=16, seed=0, form="captioned", size=size, artifacts=artifacts)
        frozen = base.run(pretrain=False, uri="", seed=0, **of)
        begin = predecessor.run(address=start, name=name, base=frozen, **of)
        raw = download.run(source=drawn, artifacts=artifacts)
        shards = preprocess.run(raw=raw, base=frozen, samples_per_shard=0, batch_size=0, max_quarantined=0, **of)
        overrides = json.dumps({"preview_every": None, "checkpoint_every_s": None, "warmup_steps": 0})
        training = train.run(
            shards=shards, base=frozen, steps=1, batch_size=4, learning_rate=lr, processes=1, overrides=overrides,
            start=predecessor.address_of(begin), **of,
        )  # fmt: skip
        return begin, training, convert.run(training=training, base=frozen, **of)

    _, training1, model1 = trained("crossflow", "scratch")
    assert "start" not in training1.metadata
    register("crossflow-256-clip-dimr", model1.uri, None, {}, {}, passed=True)
    begin2, training2, model2 = trained("crossflow:512_clip_dimr", "", "crossflow-256-clip-dimr", lr=1e-9)
    account = json.loads((Path(training2.uri) / "start.json").read_text())
    assert account == json.loads((Path(begin2.uri) / "start.json").read_text()), "what was announced is what was done"
    before, after = (
        {released_name(name): value for name, value in trainable_state(checkpoint, average=True).items()}
        for checkpoint in (Path(training1.uri) / "checkpoint", Path(training2.uri) / "checkpoint")
    )
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in account["taken"])
    assert "open_clip.logit_scale" in account["taken"], "the image tower comes along, though no export has it"
    assert not any((Path(model.uri) / TOWER).exists() for model in (model1, model2))
    towers = {name for name in before if name.startswith("open_clip")}
    assert towers
    assert folder_weights(Path(model1.uri)).keys() == before.keys() - towers

    # Lineage: in the manifest, in the key, in the MLflow run.
    assert training2.metadata["start"]["model"] == model1.digest
    assert training2.metadata["start"]["share"] == pytest.approx(account["share"], abs=1e-6)
    assert training2.made_by["inputs"]["start"]["digest"] == model1.digest
    assert training2.made_by["params"]["start"] == training2.metadata["start"]["weights"]
    assert training2.made_by["notes"]["start"] == "models:/crossflow-256-clip-dimr/1"
    connected = client()
    (tracked,) = [
        found
        for found in connected.search_runs([e.experiment_id for e in connected.search_experiments()])
        if found.data.tags.get("atelier.key") == training2.made_by["key"]
    ]
    assert tracked.data.tags["atelier.start.address"] == "models:/crossflow-256-clip-dimr/1"
    assert float(tracked.data.params["start.share"]) == pytest.approx(account["share"], abs=1e-6)
    assert "start.json" in {each.path for each in connected.list_artifacts(tracked.info.run_id)}
    _, other, _ = trained("crossflow:512_clip_dimr", "scratch", lr=1e-9)
    assert other.made_by["key"] != training2.made_by["key"]
    _, again, _ = trained("crossflow:512_clip_dimr", model1.uri, lr=1e-9)
    assert again.made_by["key"] == training2.made_by["key"], "the same model by another address is the same start"

    # Another language model and another backbone: the image tower alone, and it is said.
    register("crossflow-512-clip-dimr", model2.uri, None, {}, {}, passed=True)
    _, training3, _ = trained("crossflow:512_t5_dit", "", "crossflow-512-clip-dimr")
    third = json.loads((Path(training3.uri) / "start.json").read_text())
    assert {name.partition(".")[0] for name in third["fresh"]} == {
        "blocks", "final_layer", "t_embedder", "x_embedder", "y_embedder",
    }  # fmt: skip
    assert {name.partition(".")[0] for name in third["taken"]} == {"context_encoder", "open_clip", "open_clip_output"}
    assert {name.partition(".")[0] for name in third["unused"]} == {"stages"}
