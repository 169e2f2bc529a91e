"""Models are looked for, and what is wrong with them is said, before anything starts."""

import json
from pathlib import Path

import pytest

from atelier.annotate import places
from atelier.annotate.config import PROFILES, Config, get
from atelier.annotate.vocabulary import COCO, words
from atelier.errors import ConfigError
from atelier.storage import hub

KINDS = {"detector": "grounding-dino", "captioner": "blip-2", "phrase_encoder": "clip", "tagger": "siglip"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def folder(path: Path, kind: str, weights: str = "model.safetensors") -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    (path / weights).write_bytes(kind.encode())
    return str(path)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    return {role: folder(tmp_path / role, kind) for role, kind in KINDS.items()}


def test_the_papers_numbers() -> None:
    paper = PROFILES["paper"]
    assert (paper.box_threshold, paper.text_threshold, paper.nms_iou) == (0.25, 0.2, 0.5)
    assert paper.phrase_encoder == "openai/clip-vit-large-patch14"  # upstream's README leaves out "openai/"
    with pytest.raises(ConfigError, match="there is no profile 'big'"):
        get("big")


def test_folders_are_known_by_their_content(given: dict[str, str], tmp_path: Path) -> None:
    found = places.resolve(Config(**given, vocabulary="digits"))
    assert {role: found[role]["name"] for role in KINDS} == given
    assert found["words"] == words("digits")
    assert len(found["words"]) == 10
    again = places.resolve(Config(**given, vocabulary="digits"))
    assert again == found
    (Path(given["detector"]) / "pytorch_model.bin").write_bytes(b"never read")
    assert places.resolve(Config(**given, vocabulary="digits")) == found
    (Path(given["detector"]) / "model.safetensors").write_bytes(b"other weights")
    changed = places.resolve(Config(**given, vocabulary="digits"))
    assert changed["detector"]["digest"] != found["detector"]["digest"]
    assert changed["captioner"] == found["captioner"]
    assert "phrase_encoder" not in places.resolve(Config(**given | {"phrase_encoder": "none"}))


def test_what_is_missing_is_named_at_once(given: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no detector and no captioner and no tagger given") as caught:
        places.resolve(PROFILES["laptop"])
    assert "IDEA-Research/grounding-dino-base" in caught.value.fix
    wrong = {
        "detector": (str(tmp_path / "nowhere"), "there is no config.json in it"),
        "captioner": (given["detector"], "it is a grounding-dino"),
        "phrase_encoder": (folder(tmp_path / "pickles", "clip", "pytorch_model.bin"), "holds no safetensors"),
        "tagger": ("s3://bucket/clip", "neither a folder nor an id"),
    }
    for role, (name, message) in wrong.items():
        with pytest.raises(ConfigError, match=message):
            places.resolve(Config(**given | {role: name}))


def test_ids_are_pinned_to_their_commit(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def commit(repo: str, revision: str = "") -> str:
        asked.append((repo, revision))
        return COMMIT

    monkeypatch.setattr(hub, "commit", commit)
    config = Config(**given | {"detector": "IDEA-Research/grounding-dino-base", "captioner": "org/blip@refs/pr/3"})
    found = places.resolve(config)
    assert asked == [("IDEA-Research/grounding-dino-base", ""), ("org/blip", "refs/pr/3")]
    assert (found["captioner"]["name"], found["captioner"]["revision"]) == ("org/blip", COMMIT)


def test_a_commit_needs_no_hub() -> None:
    assert hub.commit("org/name", COMMIT) == COMMIT


def test_ram(given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the package ram is not installed") as caught:
        places.resolve(Config(**given | {"tagger": "ram"}))
    assert "recognize-anything" in caught.value.fix
    package = tmp_path / "site" / "ram"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    weights = tmp_path / "ram_swin_large_14m.pth"
    weights.write_bytes(b"weights")
    found = places.resolve(Config(**given | {"tagger": f"ram:{weights}"}))
    assert found["tagger"]["kind"] == "ram"
    assert "words" not in found
    monkeypatch.setattr(hub, "commit", lambda repo, revision="": COMMIT)
    chosen = places.resolve(Config(**given | {"tagger": ""}))["tagger"]  # RAM where it is installed
    assert (chosen["kind"], chosen["name"]) == ("ram", places.RAM_WEIGHTS)
    with pytest.raises(ConfigError, match="there is no file"):
        places.resolve(Config(**given | {"tagger": f"ram:{tmp_path}/none.pth"}))


def test_vocabularies(tmp_path: Path) -> None:
    assert words("coco") == list(COCO)
    assert len(set(COCO)) == 80
    file = tmp_path / "words.txt"
    file.write_text("Dog\n\n cat \nDog\n")
    assert words(str(file)) == ["Dog", "cat"]
    file.write_text(" \n")
    with pytest.raises(ConfigError, match="no words"):
        words(str(file))
    file.write_text("x" * 101)
    with pytest.raises(ConfigError, match="a line of 101 letters"):
        words(str(file))
    with pytest.raises(ConfigError, match="no file here"):
        words("s3://bucket/words.txt")
