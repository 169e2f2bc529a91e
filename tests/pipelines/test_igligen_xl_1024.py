"""The second stage's pipeline: its DAG, its parameters, and a real passage from one stage to the next."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from atelier.orchestration import catalogue, profile, walk
from atelier.orchestration.compile import compile_pipeline
from atelier.recipes.registry import get
from atelier.storage.manifest import Manifest
from tests.documents import documents
from tests.tracking.conftest import empty_store, store  # noqa: F401  fixtures

PROJECT = Path(__file__).parents[2]
NAME = "igligen_xl_1024"


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    compiled = compile_pipeline(catalogue.load(PROJECT, NAME), profile.load(PROJECT, "paper"))
    document: dict[str, Any] = documents(compiled.text)[0]
    return document


def test_stage_1_is_one_of_two_branches_and_stage_2_starts_from_either(spec: dict[str, Any]) -> None:
    root = spec["root"]["dag"]["tasks"]
    (branches,) = [name for name, task in root.items() if "branches" in name]
    (trained,) = [task for name, task in root.items() if name.startswith("train")]
    start = trained["inputs"]["parameters"]["start"]["taskOutputParameter"]
    assert start["producerTask"] == branches
    inner = spec["components"][root[branches]["componentRef"]["name"]]["dag"]
    selectors = inner["outputs"]["parameters"][start["outputParameterKey"]]["valueFromOneof"]["parameterSelectors"]
    tasks = {}
    for selector in selectors:
        task = inner["tasks"][selector["producerSubtask"]]
        tasks[task["triggerPolicy"]["condition"]] = _steps(
            spec["components"][task["componentRef"]["name"]]["dag"]["tasks"]
        )
    condition = "inputs.parameter_values['pipelinechannel--train_stage1'] == 'true'"
    steps = {"source", "download", "preprocess", "train", "convert", "sample", "evaluate", "register"}
    assert tasks == {condition: steps, f"!({condition})": {"predecessor"}}


def _steps(tasks: dict[str, Any]) -> set[str]:
    """The names of tasks without the number that tells those of one component apart."""
    return {re.sub(r"-\d+$", "", name) for name in tasks}


def test_the_steps_of_a_run_are_counted_by_branch() -> None:
    pipeline = catalogue.load(PROJECT, NAME)
    second = len(("base", "judge", "source", "download", "preprocess", "train", "convert", "sample", "evaluate",
                  "register", "report"))  # fmt: skip
    assert walk.count(pipeline, {"train_stage1": "true"}) == second + 8
    assert walk.count(pipeline, {"train_stage1": "false"}) == second + 1
    assert (
        walk.count(
            pipeline,
        )
        == second + 9
    )


def test_parameters_are_described_and_those_of_the_first_stage_mean_the_same() -> None:
    own, first = (catalogue.load(PROJECT, name).parameters for name in (NAME, "igligen_xl_512"))
    assert all(parameter.description for parameter in own.values())
    assert own["train_stage1"].choices == ("auto", "true", "false")
    assert set(first) <= set(own)
    changed = {name for name in first if first[name].default != own[name].default}
    assert changed == {"model_name"}
    assert own["stage1_name"].default == first["model_name"].default


def test_the_second_stages_numbers() -> None:
    first, second = (get(name, "paper").config for name in ("igligen_xl", "igligen_xl:1024"))
    assert (second.resolution, second.train.steps, second.train.batch_size, second.train.lr) == (
        1024,
        100_000,
        32,
        5e-5,
    )
    assert (second.train.process_micro_batch, second.train.processes, second.train.accumulation) == (1, 8, 4)
    same = {"resolution", "train"}
    assert second.model_dump(exclude=same) == first.model_dump(exclude=same)
    assert get("igligen_xl:1024", "laptop").config.resolution > get("igligen_xl", "laptop").config.resolution


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("store")
def test_what_stage_1_learned_is_where_stage_2_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step from the canvases to the registered second model, for real, a few training steps each."""
    import torch
    from safetensors.torch import load_file

    from atelier.convert.training_checkpoint import trainable_state
    from atelier.errors import ConfigError
    from atelier.recipes.grounded_recipe import ADAPTER
    from atelier.steps import base, convert, digits, download, predecessor, preprocess, train
    from atelier.tracking.registry import register
    from atelier.tracking.service import client

    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))
    artifacts = str(tmp_path / "artifacts")
    place: dict[str, Any] = {"profile": "laptop", "artifacts": artifacts}
    raw = download.run(source=digits.run(images=16, seed=0, artifacts=artifacts), artifacts=artifacts)
    frozen = base.run(recipe="igligen_xl", pretrain=False, uri="", seed=0, **place)

    def trained(recipe: str, start: str = "", steps: int = 2, lr: float = 0.0) -> tuple[Manifest, Manifest]:
        shards = preprocess.run(
            raw=raw, base=frozen, recipe=recipe, samples_per_shard=0, batch_size=0, max_quarantined=0, **place
        )
        overrides = json.dumps({"preview_every": None, "checkpoint_every_s": None, "warmup_steps": 0})
        training = train.run(
            shards=shards, base=frozen, recipe=recipe, steps=steps, batch_size=4, learning_rate=lr, processes=1,
            overrides=overrides, start=start, **place,
        )  # fmt: skip
        return training, convert.run(training=training, base=frozen, recipe=recipe, **place)

    training1, model1 = trained("igligen_xl")
    assert "start" not in training1.metadata
    register("igligen-xl", model1.uri, None, {}, {}, passed=True)
    start = predecessor.run(address="", name="igligen-xl", base=frozen, recipe="igligen_xl:1024", **place)
    assert predecessor.address_of(start) == "models:/igligen-xl/1"

    # One step at a learning rate of nearly nothing: what comes out is what went in.
    training2, model2 = trained("igligen_xl:1024", predecessor.address_of(start), steps=1, lr=1e-9)
    before, after = (load_file(Path(model.uri) / ADAPTER) for model in (model1, model2))
    gates = {name for name in before if "alpha" in name}  # they have a learning rate of their own
    assert all(torch.allclose(after[name], before[name], atol=1e-7) for name in before.keys() - gates)
    assert trainable_state(Path(training2.uri) / "checkpoint").keys() == before.keys()

    # Lineage: in the manifest, in the key, in the MLflow run.
    adapter = model1.file(ADAPTER).sha256
    assert training2.metadata["start"] == {
        "weights": adapter, "model": model1.digest, "share": 1.0,
        "taken": len(before), "fresh": 0, "misshapen": 0, "unused": 0,
    }  # fmt: skip
    assert training2.made_by["inputs"]["start"]["digest"] == model1.digest
    assert training2.made_by["params"]["start"] == adapter
    assert training2.made_by["notes"]["start"] == "models:/igligen-xl/1"
    connected = client()
    (tracked,) = [
        found
        for found in connected.search_runs([e.experiment_id for e in connected.search_experiments()])
        if found.data.tags.get("atelier.key") == training2.made_by["key"]
    ]
    assert tracked.data.tags["atelier.start.address"] == "models:/igligen-xl/1"
    assert tracked.data.tags["atelier.start.weights"] == adapter
    assert tracked.data.params["start"] == adapter
    other, _ = trained("igligen_xl:1024", steps=1, lr=1e-9)
    assert other.made_by["key"] != training2.made_by["key"]
    again, _ = trained("igligen_xl:1024", model1.uri, steps=1, lr=1e-9)
    assert again.made_by["key"] == training2.made_by["key"], "the same model by another address is the same start"

    # The sizes that the model is told are those of the larger square.
    from atelier.data.loader import ShardDataset

    shards = Manifest.load(training2.made_by["inputs"]["shards"]["uri"])
    sample = ShardDataset(shards).sample(0)
    size = get("igligen_xl:1024", "laptop").config.resolution
    assert sample["json"]["time_ids"][4:] == [size, size]
    assert sample["latent"].shape == (4, size // 4, size // 4)
    with pytest.raises(ConfigError, match="the registry has no"):
        trained("igligen_xl:1024", "models:/nobody@champion")
