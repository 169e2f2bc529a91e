"""Files whose place stays and whose content changes: their mark, and the cache of fetched ones."""

import os
from pathlib import Path

import pytest

from atelier.storage import s3
from atelier.storage.cache import fetched
from atelier.storage.state import state_of, state_of_model


def test_a_replaced_object_is_fetched_anew(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path))
    place = f"{s3_bucket}/stats.npz"
    s3.write_bytes(place, b"first")
    before, mark = fetched(place), state_of([place])
    assert before.read_bytes() == b"first"
    assert fetched(place) == before
    s3.write_bytes(place, b"other")
    assert state_of([place]) != mark
    assert fetched(place).read_bytes() == b"other"
    assert fetched(place).name == "stats.npz"


def test_a_name_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    mark = state_of([f"{tmp_path}/a[1].txt"])
    assert mark != state_of([f"{tmp_path}/a1.txt"])
    (tmp_path / "a[1].txt").write_text("xx")
    assert state_of([f"{tmp_path}/a[1].txt"]) != mark
    assert state_of(["https://example.org/a.txt"]) == ""


def test_a_models_folder_and_an_id(tmp_path: Path) -> None:
    weights = tmp_path / "clip/model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    mark = state_of_model(str(weights.parent))
    assert mark
    os.utime(weights, ns=(1, 1))
    assert state_of_model(str(weights.parent)) != mark
    assert state_of_model("openai/clip-vit-base-patch32") == ""
