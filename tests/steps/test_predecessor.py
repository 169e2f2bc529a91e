"""What a training starts from: registry, folders, foreign forms; what is settled before anything runs."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.errors import ConfigError, DataError
from atelier.recipes.grounded_recipe import ADAPTER
from atelier.recipes.registry import get
from atelier.steps import predecessor
from atelier.steps.start import starting_point
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from atelier.tracking.registry import register
from tests.recipes.twin import write_twin
from tests.tracking.conftest import empty_store, store  # noqa: F401  fixtures

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("base")
    out = OutputFolder(str(folder / "base"), folder / "work")
    write_twin(out.path)
    return out.finish("base", {}, {})


@pytest.fixture(scope="module")
def weights(base: Manifest) -> dict[str, torch.Tensor]:
    from atelier.recipes.registry import get

    torch.manual_seed(1)
    objective = get("igligen_xl", "laptop").objective(Path(base.uri))
    return {name: value.clone() for name, value in objective.trainable_state(objective.build()).items()}


def model(folder: Path, base: Manifest, weights: dict[str, torch.Tensor], profile: str = "laptop") -> Manifest:
    """A folder such as the step convert publishes."""
    out = OutputFolder(str(folder), folder.with_name(folder.name + "-work"))
    save_file(weights, out.path / ADAPTER)
    made_by = {"inputs": {"base": {"uri": base.uri, "digest": base.digest}}}
    return out.finish("model", {"recipe": "igligen_xl", "profile": profile}, made_by)


def run(tmp_path: Path, base: Manifest, place: str = "") -> Manifest:
    return predecessor.run(
        address=place, name="igligen-xl", base=base, recipe="igligen_xl:1024", profile="laptop",
        artifacts=str(tmp_path / "artifacts"),
    )  # fmt: skip


SECOND = get("igligen_xl:1024", "laptop")


def test_the_champion_by_name_by_version_and_by_folder(
    tmp_path: Path, base: Manifest, weights: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ConfigError, match="the registry has no models:/igligen-xl@champion"):
        run(tmp_path, base)
    made = model(tmp_path / "model", base, weights)
    register("igligen-xl", made.uri, None, {"layout_accuracy": 0.9}, {}, passed=True)
    digests = {"model": made.digest, "weights": made.file(ADAPTER).sha256}
    for place in ("", "models:/igligen-xl/1", "models:/IGLIGEN-XL@Champion"):
        found = run(tmp_path, base, place)
        assert found.metadata == {"address": "models:/igligen-xl/1", **digests}
        assert predecessor.address_of(found) == "models:/igligen-xl/1"
    by_folder = run(tmp_path, base, made.uri)
    assert by_folder.metadata == {"address": made.uri, **digests}
    assert starting_point(predecessor.address_of(by_folder), base, SECOND).weights == digests["weights"]
    for address in ("models:/igligen-xl/7", "models:/igligen-xl@nobody", "models:/other@champion"):
        with pytest.raises(ConfigError, match="the registry has no"):
            run(tmp_path, base, address)
    with pytest.raises(ConfigError, match="no address of a model"):
        run(tmp_path, base, "models:/igligen-xl")


def test_another_base_a_missing_file_and_a_changed_model_are_named(
    tmp_path: Path, base: Manifest, weights: dict[str, torch.Tensor]
) -> None:
    made = model(tmp_path / "model", base, weights)
    register("igligen-xl", made.uri, None, {}, {}, passed=True)
    other = Manifest("base", base.uri, (), {"another": True})
    with pytest.raises(ConfigError, match="was trained on another base model"):
        run(tmp_path, other)
    (tmp_path / "model" / ADAPTER).unlink()
    with pytest.raises(DataError, match="no complete model"):
        run(tmp_path, base)
    (tmp_path / "model" / "manifest.json").unlink()
    model(tmp_path / "model2", base, {name: value + 1 for name, value in weights.items()})
    (tmp_path / "model").rename(tmp_path / "gone")
    (tmp_path / "model2").rename(tmp_path / "model")
    with pytest.raises(DataError, match="is not the model that models:/igligen-xl/1 was registered with"):
        run(tmp_path, base)


def test_an_adapter_file_and_a_folder_of_diffusers_are_converted(
    tmp_path: Path, base: Manifest, weights: dict[str, torch.Tensor]
) -> None:
    from atelier.convert.pipeline_folder import export

    save_file(weights, tmp_path / "a.safetensors")
    (tmp_path / "folder").mkdir()
    export(Path(base.uri), weights, tmp_path / "folder")
    for place in (tmp_path / "a.safetensors", tmp_path / "folder"):
        made = run(tmp_path, base, str(place))
        found = starting_point(predecessor.address_of(made), base, SECOND)
        adapter = load_file(Path(made.uri) / ADAPTER)
        assert adapter.keys() == weights.keys()
        assert all(torch.equal(adapter[name], weights[name]) for name in weights)
        assert found.model.digest == made.digest
    save_file({name: value for name, value in weights.items() if "alpha" not in name}, tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match=r"\d+ missing keys: .*alpha"):
        run(tmp_path, base, str(tmp_path / "b.safetensors"))
    with pytest.raises(ConfigError, match="there is nothing"):
        run(tmp_path, base, str(tmp_path / "nowhere"))


def choose(**changes: Any) -> str:
    return predecessor.choose(
        **({"train_first": "auto", "start": "", "name": "igligen-xl", "profile": "laptop"} | changes)
    )


def test_what_is_settled_before_anything_runs(tmp_path: Path, base: Manifest, weights: dict[str, torch.Tensor]) -> None:
    assert choose() == "true"
    for given in ({"train_first": "false"}, {"profile": "paper"}):
        with pytest.raises(ConfigError, match=r"no such model") as caught:
            choose(**given)
        assert 'SET="train_stage1=true"' in caught.value.fix
    assert choose(profile="paper", train_first="true") == "true"
    register("igligen-xl", model(tmp_path / "poor", base, weights).uri, None, {}, {}, passed=False)
    assert choose() == "true", "a challenger is not what stage 2 starts from"
    good = model(tmp_path / "good", base, {name: value + 1 for name, value in weights.items()})
    register("igligen-xl", good.uri, None, {}, {}, passed=True)
    assert choose() == "false"
    assert choose(train_first="true") == "true"
    assert choose(start="models:/igligen-xl/1") == "false"
    assert choose(start=good.uri) == "false"
    with pytest.raises(ConfigError, match="is of the profile laptop, not paper"):
        choose(profile="paper")
    with pytest.raises(ConfigError, match="two ways"):
        choose(train_first="true", start=good.uri)
    with pytest.raises(ConfigError, match="there is nothing"):
        choose(start=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no such model"):
        choose(start="models:/igligen-xl@best")
    (tmp_path / "good" / ADAPTER).unlink()
    assert choose() == "true", "a champion whose files are gone"
