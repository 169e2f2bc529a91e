import json
from pathlib import Path

import pytest

from atelier.errors import DataError
from atelier.storage.atomic import NotFound
from atelier.storage.digest import canonical_json, sha256_json
from atelier.storage.manifest import FileEntry, Manifest

ENTRY = FileEntry("a/b.bin", 3, "0" * 64)


def manifest(**changes: object) -> Manifest:
    fields = {"kind": "k", "uri": "/x", "files": (ENTRY,), "metadata": {"n": 1}, "made_by": {"step": "s"}} | changes
    return Manifest(**fields)  # type: ignore[arg-type]


def test_round_trip() -> None:
    assert Manifest.parse(manifest().to_json()) == manifest()


def test_digest_is_of_the_content_alone() -> None:
    assert manifest().digest == manifest(uri="s3://b/y", made_by={"time": 5}).digest
    assert manifest().digest.startswith("sha256:")
    for changed in ({"kind": "other"}, {"metadata": {"n": 2}}, {"files": ()}):
        assert manifest(**changed).digest != manifest().digest


def test_canonical_json_does_not_depend_on_order() -> None:
    assert sha256_json({"b": 1, "a": "ä"}) == sha256_json({"a": "ä", "b": 1})
    with pytest.raises(ValueError):
        canonical_json({"x": float("nan")})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": 1}',
        manifest().to_json()[:-20],
        manifest().to_json().replace('"bytes": 3', '"bytes": 4'),
    ],
)
def test_damaged_ones_are_refused(text: str) -> None:
    with pytest.raises(DataError):
        Manifest.parse(text)


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a/../../b", "", "a\\b"])
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    record = json.loads(manifest().to_json())
    record["files"][0]["path"] = path
    with pytest.raises(DataError, match="leaves the folder"):
        Manifest.parse(json.dumps(record))


def test_a_newer_schema_says_so() -> None:
    with pytest.raises(DataError, match="schema 9"):
        Manifest.parse(manifest().to_json().replace('"schema": 1', '"schema": 9'))


def test_load_gives_a_moved_folder_its_place(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest().to_json())
    assert Manifest.load(tmp_path).uri == str(tmp_path)
    (tmp_path / "artifact").write_text(manifest().to_json())
    assert Manifest.load(tmp_path / "artifact").uri == "/x"
    with pytest.raises(NotFound):
        Manifest.load(tmp_path / "nowhere")


def test_file_by_name() -> None:
    assert manifest().file("a/b.bin") is ENTRY
    with pytest.raises(DataError, match=r"no file 'c'"):
        manifest().file("c")
    assert manifest().total_bytes == 3
