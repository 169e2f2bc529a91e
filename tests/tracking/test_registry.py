"""Versions by URI, aliases and the history of their moves."""

from pathlib import Path

import pytest

from atelier.errors import ConfigError, DataError
from atelier.storage.folder import OutputFolder
from atelier.tracking.registry import history, identity, register, version_by_alias
from atelier.tracking.runs import child_run
from atelier.tracking.service import client


def model(folder: Path, weights: bytes) -> str:
    """A complete model folder in the artifact store; returns its URI."""
    uri = str(folder / f"model-{weights.hex()}")
    out = OutputFolder(uri, folder / ".work" / weights.hex())
    (out.path / "model_index.json").write_text("{}")
    (out.path / "adapter.safetensors").write_bytes(weights)
    out.finish("model", {"recipe": "igligen_xl"}, {})
    return uri


def test_champion_is_the_first_that_passed(store: str, tmp_path: Path) -> None:
    with child_run("register") as run:
        run_id = run.run_id()
    poor = register("IGLIGEN-XL", model(tmp_path, b"a"), run_id, {"layout_accuracy": 0.3}, {}, passed=False)
    assert (poor.name, poor.version, poor.aliases, poor.new) == ("igligen-xl", "1", ("challenger",), True)
    good = register("igligen-xl", model(tmp_path, b"b"), run_id, {"layout_accuracy": 0.9}, {"a": 1}, passed=True)
    assert (good.version, good.aliases) == ("2", ("challenger", "champion"))
    better = register("igligen-xl", model(tmp_path, b"c"), None, {"layout_accuracy": 0.95}, {}, passed=True)
    assert (better.version, better.aliases) == ("3", ("challenger",)), "promotion is another's business"
    again = register(
        "igligen-xl", model(tmp_path / "elsewhere", b"b"), run_id, {"layout_accuracy": 0.9}, {}, passed=True
    )
    assert (again.version, again.new) == ("2", False), "the same content is not added twice"
    assert version_by_alias("igligen-xl", "Champion") == "2"
    assert version_by_alias("igligen-xl", "nobody") is None

    connected = client(store)
    found = connected.get_model_version_by_alias("igligen-xl", "champion")
    assert found.source == model_uri(tmp_path, b"b")
    assert found.tags["metric.layout_accuracy"] == "0.9"
    assert found.tags["a"] == "1"
    assert found.run_id == run_id
    best = connected.search_logged_models(
        [connected.get_run(run_id).info.experiment_id], filter_string="metrics.layout_accuracy > 0.5"
    )
    assert [logged.name for logged in best] == ["igligen-xl"]
    assert [(move.alias, move.version, move.previous) for move in history("igligen-xl")] == [
        ("challenger", "1", None),
        ("challenger", "2", "1"),
        ("champion", "2", None),
        ("challenger", "3", "2"),
    ]


def test_a_later_evaluation_of_known_content_is_noted(store: str, tmp_path: Path) -> None:
    with child_run("register") as run:
        run_id = run.run_id()
    uri, first = model(tmp_path, b"a"), {"atelier.evaluation": "e1", "atelier.run_id": "r1"}
    register("m", uri, run_id, {"layout_accuracy": 0.5}, first, passed=False)
    later = {"atelier.evaluation": "e2", "atelier.run_id": "r2"}
    for _ in range(2):
        again = register("m", uri, None, {"layout_accuracy": 0.75, "fid": 9.5}, later, passed=True)
        assert (again.version, again.new, again.aliases) == ("1", False, ("challenger", "champion"))
    register("m", uri, None, {"layout_accuracy": 0.75}, {"atelier.evaluation": "e3"}, passed=False)
    connected = client(store)
    found = connected.get_model_version("m", "1")
    assert found.tags["metric.layout_accuracy"] == "0.75"
    assert found.tags["metric.fid"] == "9.5"
    assert (found.tags["atelier.evaluation"], found.tags["atelier.passed"]) == ("e3", "false")
    assert found.tags["atelier.run_id"] == "r1", "what made it stays"
    assert version_by_alias("m", "champion") == "1", "promotion alone takes an alias away"
    (logged,) = connected.search_logged_models(
        [connected.get_run(run_id).info.experiment_id], filter_string="metrics.fid < 10"
    )
    assert logged.tags["atelier.evaluation"] == "e3"
    assert [move.alias for move in history("m")] == ["challenger", "champion"]


def model_uri(folder: Path, weights: bytes) -> str:
    return str(folder / f"model-{weights.hex()}")


def test_source_must_exist(store: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete model"):
        register("m", str(tmp_path / "nowhere"), None, {}, {}, passed=True)
    uri = model(tmp_path, b"x")
    (Path(uri) / "adapter.safetensors").unlink()
    with pytest.raises(DataError, match="no complete model"):
        register("m", uri, None, {}, {}, passed=True)
    assert not client(store).search_registered_models()


def test_names_and_aliases_that_mlflow_cannot_keep_apart(store: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        register("a b/c", model(tmp_path, b"y"), None, {}, {}, passed=True)
    for alias in ("latest", "v3", "a b"):
        with pytest.raises(ConfigError):
            version_by_alias("m", alias)


def test_registry_made_again_is_another(store: str, tmp_path: Path) -> None:
    assert identity(store).startswith(store)
    assert identity(store) == identity(store)
