"""What CrossFlow's later models start from: what fits of another one, accounted for; what is refused, and when."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.convert.crossflow import TOWER, write_folder
from atelier.convert.training_checkpoint import weights_of_parts
from atelier.convert.weights import of_state
from atelier.errors import ConfigError, DataError
from atelier.models.crossflow.model import released_name
from atelier.recipes.crossflow import Recipe
from atelier.recipes.registry import get
from atelier.steps import base as bases
from atelier.steps import predecessor, preprocess, train
from atelier.steps.start import starting_point
from atelier.steps.start_weights import start_weights
from atelier.storage import s3
from atelier.storage.folder import InputFolder, OutputFolder
from atelier.storage.manifest import Manifest
from atelier.tracking.registry import register
from atelier.training import checkpoint as checkpoints
from atelier.training.masters import Fragment
from atelier.training.parts import part_name, write_part
from tests.tracking.conftest import empty_store, store  # noqa: F401  fixtures

pytestmark = pytest.mark.usefixtures("store")
FIRST, LATER = "crossflow", "crossflow:512_clip_dimr"
NAME = "crossflow-256-clip-dimr"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return frozen(FIRST, tmp_path_factory.mktemp("artifacts"))


def frozen(recipe: str, artifacts: Path, **given: str) -> Manifest:
    return bases.run(recipe=recipe, profile="laptop", pretrain=False, seed=0, artifacts=str(artifacts),
                     **{"uri": "", **given})  # fmt: skip


def fresh_state(base: Manifest, recipe: str) -> dict[str, torch.Tensor]:
    """What a training of a fresh twin would hold."""
    chosen: Recipe = get(recipe, "laptop")
    torch.manual_seed(1)
    fresh = chosen.objective(Path(base.uri)).build()
    return {name: value.detach() for name, value in fresh.named_parameters() if value.requires_grad}


def model(
    folder: Path, base: Manifest, recipe: str = FIRST, said: str = "", training: Manifest | None = None
) -> Manifest:
    """A folder such as the step convert publishes, of a fresh twin.

    Args:
        said: the recipe in its metadata, if not the one that it is of.
        training: what it says that it was made of.
    """
    out = OutputFolder(str(folder), folder.with_name(folder.name + "-work"))
    get(recipe, "laptop").export(Path(base.uri), fresh_state(base, recipe), out.path)
    made_of = {"base": base, **({"training": training} if training else {})}
    inputs = {name: {"uri": found.uri, "digest": found.digest} for name, found in made_of.items()}
    return out.finish("model", {"recipe": said or recipe, "profile": "laptop"}, {"inputs": inputs})


def trained(place: str, work: Path, base: Manifest, recipe: str = FIRST, ema: bool = True) -> Manifest:
    """An output such as the step train publishes, of a fresh twin, saved by three ranks: the image tower is on the last
    two; its moving average is the weights' negative."""
    state = fresh_state(base, recipe)
    towers = sorted(name for name in state if name.startswith("open_clip"))
    others = sorted(state.keys() - set(towers))
    out = OutputFolder(place, work / "work", work / "cache")
    (out.path / "checkpoint").mkdir()
    largest = max(towers, key=lambda name: state[name].numel())
    half = state[largest].numel() // 2
    pieces = {0: [(name, 0, None) for name in others], 1: [(largest, 0, half)],
              2: [(largest, half, None)] + [(name, 0, None) for name in towers if name != largest]}  # fmt: skip
    files = []
    for rank, held in pieces.items():
        owned = []
        for name, start, end in held:
            flat = state[name].float().reshape(-1)[start:end].contiguous()
            owned.append(Fragment(name, start, {"weight": flat, **({"ema": -flat} if ema else {})}))
        files.append(write_part(out.path / "checkpoint" / part_name(rank), owned))
    shapes = {name: list(value.shape) for name, value in state.items()}
    record = checkpoints.manifest_of(3, files, {"parameters": shapes})
    (out.path / "checkpoint" / "manifest.json").write_text(json.dumps(record))
    return out.finish("training", {"config": {"ema_decay": 0.9 if ema else None}}, {})


def run(tmp_path: Path, base: Manifest, place: str = "", recipe: str = LATER, name: str = NAME) -> Manifest:
    return predecessor.run(
        address=place, name=name, base=base, recipe=recipe, profile="laptop", artifacts=str(tmp_path / "artifacts")
    )


def require(place: str = "", recipe: str = LATER, name: str = NAME, profile: str = "laptop") -> None:
    predecessor.require(address=place, name=name, recipe=recipe, profile=profile, made_by="crossflow_256_clip_dimr")


def test_the_champion_is_taken_and_every_key_is_accounted_for(tmp_path: Path, base: Manifest) -> None:
    made = model(tmp_path / "model", base)
    register(NAME, made.uri, None, {}, {}, passed=True)
    require()
    found = run(tmp_path, base)
    assert predecessor.address_of(found) == f"models:/{NAME}/1"
    account = json.loads((Path(found.uri) / "start.json").read_text())
    assert account["origin"] == f"models:/{NAME}/1"
    own = get(LATER, "laptop").starting.shapes()
    kinds = {name: {key.partition(" ")[0] for key in account[name]} for name in ("taken", "fresh", "misshapen")}
    assert set.union(*kinds.values()) == own.keys()
    assert sum(map(len, kinds.values())) == len(own)
    assert found.metadata["account"]["taken"] == len(kinds["taken"])
    assert 0.2 < account["share"] < 0.9
    assert any(name.startswith("stages.2.") for name in kinds["fresh"]), "256 px has two stages"
    assert all(name.startswith(("stages.0.blocks", "open_clip.visual.trunk.blocks")) for name in kinds["taken"]
               if ".blocks." in name and not name.startswith("stages.1."))  # fmt: skip
    assert not account["unused"]
    assert run(tmp_path, base, made.uri).metadata["weights"] == found.metadata["weights"]


def test_scratch_is_nothing_at_all(tmp_path: Path, base: Manifest) -> None:
    require("scratch")
    assert predecessor.address_of(run(tmp_path, base, "scratch")) == ""
    of: dict[str, Any] = {
        "address": "",
        "name": "",
        "base": base,
        "profile": "laptop",
        "artifacts": str(tmp_path / "a"),
    }
    assert predecessor.address_of(predecessor.run(recipe=FIRST, **of)) == "", "the first of the chain"
    with pytest.raises(ConfigError, match=f"{LATER} starts from a model of {FIRST}, and none is named"):
        predecessor.run(recipe=LATER, **of)


def test_a_missing_predecessor_is_told_ahead_with_the_command_that_makes_it(tmp_path: Path, base: Manifest) -> None:
    with pytest.raises(ConfigError, match=f"{LATER} starts from models:/{NAME}@champion: .* no such model") as caught:
        require()
    assert "make run PIPELINE=crossflow_256_clip_dimr PROFILE=laptop" in caught.value.fix
    assert 'SET="start=scratch"' in caught.value.fix
    register(NAME, model(tmp_path / "poor", base).uri, None, {}, {}, passed=False)
    with pytest.raises(ConfigError) as caught:
        require()
    assert f'SET="start=models:/{NAME}@challenger"' in caught.value.fix
    require(f"models:/{NAME}@challenger")
    with pytest.raises(ConfigError, match="is of the profile laptop, not paper"):
        require(f"models:/{NAME}@challenger", profile="paper")
    with pytest.raises(ConfigError, match="no such model") as caught:
        require("models:/nobody@champion")
    assert "make run" not in caught.value.fix
    with pytest.raises(ConfigError, match="there is nothing"):
        require(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no address of a model"):
        require("models:/nobody")


def test_a_model_of_another_recipe_or_stage_is_named(tmp_path: Path, base: Manifest) -> None:
    other = model(tmp_path / "other", base, said="igligen_xl")
    with pytest.raises(ConfigError, match="is a model of igligen_xl, this trains crossflow"):
        run(tmp_path, base, other.uri)
    wrong = model(tmp_path / "wrong", base, said="crossflow:256_clip_dit")
    register(NAME, wrong.uri, None, {}, {}, passed=True)
    for refuse in (lambda: run(tmp_path, base), require):
        with pytest.raises(ConfigError, match="is a model of crossflow:256_clip_dit, not of crossflow") as caught:
            refuse()
        assert f"start: models:/{NAME}/1" in caught.value.fix
    assert run(tmp_path, base, f"models:/{NAME}/1").metadata["account"]["share"] > 0, "named, it is what was meant"


def test_nothing_in_common_and_what_is_no_model_are_refused_before_any_data(tmp_path: Path, base: Manifest) -> None:
    made = model(tmp_path / "model", base)
    for part in ("flow", "context_encoder"):
        path = tmp_path / "strange" / part / "diffusion_pytorch_model.safetensors"
        path.parent.mkdir(parents=True)
        save_file({"other.weight": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="nothing in common with what is trained: of its 2 keys 0 have"):
        run(tmp_path, base, str(tmp_path / "strange"))
    with pytest.raises(DataError, match=r"holds no flow/\* and no context_encoder/\*"):
        run(tmp_path, base, base.uri)
    vae = Path(made.uri) / "vae" / "diffusion_pytorch_model.safetensors"
    out = OutputFolder(str(tmp_path / "bent"), tmp_path / "bent-work")
    shutil.copytree(made.uri, out.path, dirs_exist_ok=True)
    (out.path / "manifest.json").unlink()
    save_file({name: value + 1 for name, value in load_file(vae).items()}, out.path / "vae" / vae.name)
    bent = out.finish("model", {"recipe": FIRST, "profile": "laptop"}, {})
    with pytest.raises(ConfigError, match="was trained with another vae than the base has"):
        run(tmp_path, base, bent.uri)


def released(folder: Path, base: Manifest, recipe: str = LATER) -> Path:
    """A folder such as ``convert-crossflow --keep-tower`` writes, of a fresh twin."""
    state = {released_name(name): value for name, value in fresh_state(base, recipe).items()}
    folder.mkdir()
    write_folder(of_state(state), get(recipe, "laptop").config.model(), folder, Path(base.uri), keep_tower=True)
    return folder


def test_what_an_export_leaves_out_comes_from_the_training_that_made_it(
    s3_bucket: str, tmp_path: Path, base: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    training = trained(f"{s3_bucket}/training", tmp_path / "t", base)
    made = model(tmp_path / "model", base, training=training)
    assert not (Path(made.uri) / TOWER).exists()
    register(NAME, made.uri, None, {}, {}, passed=True)
    found = run(tmp_path, base)
    account = json.loads((Path(found.uri) / "start.json").read_text())
    towers = {name for name in get(LATER, "laptop").starting.shapes() if name.startswith("open_clip")}
    assert towers - set(account["taken"]) == {key.partition(" ")[0] for key in account["misshapen"]} & towers
    assert {each: kept["digest"] for each, kept in found.made_by["inputs"].items()} == {
        "start": made.digest, "start_training": training.digest, "base": base.digest,
    }  # fmt: skip
    chosen = get(LATER, "laptop")
    start = starting_point(predecessor.address_of(found), base, chosen)
    assert start.training is not None
    cache = tmp_path / "other-machine"
    read = start_weights(InputFolder(made, cache), InputFolder(start.training, cache), chosen.starting)
    state = fresh_state(base, FIRST)
    assert {name for name in read if name.startswith("open_clip")} == towers
    assert all(torch.equal(read[name].tensor(), -state[name]) for name in towers), "averaged, as exports are"
    fetched = {path.name for path in (cache / "folders").rglob("rank-*")}
    assert fetched == {part_name(1), part_name(2)}, "the file that holds none of them stays where it is"

    # Without an average the weights themselves; and a model whose training is gone, or was made anew, says so.
    plain = trained(str(tmp_path / "plain"), tmp_path / "p", base, ema=False)
    weights = weights_of_parts(InputFolder(plain), chosen.starting.training_only)
    assert all(torch.equal(weights[name].tensor(), state[name]) for name in towers)
    other = model(tmp_path / "other", base, training=plain)
    with_it = run(tmp_path, base, other.uri)
    remade = trained(str(tmp_path / "remade"), tmp_path / "r", base)
    shutil.rmtree(plain.uri)
    shutil.copytree(remade.uri, plain.uri)
    for problem in ("is another one now", "is not there any more"):
        capsys.readouterr()
        alone = run(tmp_path, base, other.uri)
        assert f"warning: the training that made {other.uri} {problem}" in capsys.readouterr().err
        account = json.loads((Path(alone.uri) / "start.json").read_text())
        assert towers <= set(account["fresh"])
        assert alone.metadata["weights"] != with_it.metadata["weights"], "another start, and another key"
        shutil.rmtree(plain.uri, ignore_errors=True)


def test_a_checkpoint_and_a_folder_from_elsewhere(tmp_path: Path, base: Manifest) -> None:
    """A flat file of released names, tower and all, and a folder without a manifest."""
    from atelier.convert.crossflow import folder_weights

    folder = released(tmp_path / "folder", base)
    weights = {name: weight.tensor() for name, weight in folder_weights(folder).items()}
    torch.save(weights, tmp_path / "released.pth")
    chosen = get(LATER, "laptop")
    for place in (tmp_path / "released.pth", folder):
        found = run(tmp_path, base, str(place))
        assert found.metadata["account"] == {
            "share": 1.0, "taken": len(weights), "fresh": 0, "misshapen": 0, "unused": 0,
        }  # fmt: skip
        start = starting_point(predecessor.address_of(found), base, chosen)
        read = chosen.starting.read(Path(start.model.uri))
        assert all(torch.equal(read[name].tensor(), weights[name]) for name in weights)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="is no CrossFlow that was released"):
        run(tmp_path, base, str(tmp_path / "other.pth"))


def test_a_folder_on_s3_brings_its_tower_and_is_read_anew_when_it_changed(
    s3_bucket: str, tmp_path: Path, base: Manifest
) -> None:
    folder = released(tmp_path / "folder", base)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        s3.upload(path, f"{s3_bucket}/released/{path.relative_to(folder).as_posix()}")
    found = run(tmp_path, base, f"{s3_bucket}/released")
    assert found.metadata["account"]["share"] == 1.0, "the tower too"
    assert run(tmp_path, base, f"{s3_bucket}/released").digest == found.digest
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / TOWER).items()}
    save_file(zeros, tmp_path / "zeros")
    s3.upload(tmp_path / "zeros", f"{s3_bucket}/released/{TOWER}")
    again = run(tmp_path, base, f"{s3_bucket}/released")
    assert again.file(TOWER).sha256 != found.file(TOWER).sha256


def test_a_base_of_t5(tmp_path: Path, base: Manifest) -> None:
    """The twin's T5 beside the shipped autoencoder, and nothing else; a folder of the hub's form gives the same."""
    from atelier.sampling.crossflow_text import encode, open_language_model

    made = frozen("crossflow:512_t5_dit", tmp_path / "artifacts")
    assert {entry.path.partition("/")[0] for entry in made.files} == {"vae", "text_encoder", "tokenizer"}
    again = frozen("crossflow:256_t5_dimr", tmp_path / "elsewhere")
    assert again.digest == made.digest, "the same numbers every time"
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert made.file(vae).sha256 == base.file(vae).sha256, "so that a T5 model may start from CLIP's"
    tokenizer, encoder = open_language_model(Path(made.uri))
    states = encode(tokenizer, encoder, ["a three above a seven", "a seven above a three"], 16)
    assert states.mask.sum(1).tolist() == [6, 6]
    assert 0.5 < float(states.states[states.mask.bool()].std()) < 2
    assert not torch.allclose(states.states[0, 1], states.states[1, 1], atol=0.1)

    hub = tmp_path / "hub"
    hub.mkdir()
    shutil.copy(Path(made.uri) / "text_encoder" / "config.json", hub)
    torch.save(load_file(Path(made.uri) / "text_encoder" / "model.safetensors"), hub / "pytorch_model.bin")
    (hub / "spiece.model").write_bytes(sentencepiece(Path(made.uri) / "tokenizer" / "tokenizer.json"))
    (hub / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    (hub / "README.md").touch()
    own = {path.name: path.read_bytes() for path in hub.iterdir()}
    fetched = frozen("crossflow:512_t5_dit", tmp_path / "artifacts", text_uri=str(hub))
    assert {path.name: path.read_bytes() for path in hub.iterdir()} == own, "the user's own files"
    names = {entry.path for entry in fetched.files if not entry.path.startswith("vae/")}
    assert names == {"text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/spiece.model",
                     "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}  # fmt: skip
    same = encode(*open_language_model(Path(fetched.uri)), ["a three above a seven", "a seven above a three"], 16)
    assert torch.equal(same.states, states.states)
    (hub / "spiece.model").write_bytes(b"no model")
    (hub / "config.json").write_text((hub / "config.json").read_text() + " ")  # another folder's state
    with pytest.raises(DataError, match=r"spiece\.model"):
        frozen("crossflow:512_t5_dit", tmp_path / "third", text_uri=str(hub))


def sentencepiece(fast: Path) -> bytes:
    """A SentencePiece model of the unigrams of a ``tokenizer.json``."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model: Any = import_protobuf().ModelProto()
    for number, (piece, score) in enumerate(json.loads(fast.read_text())["model"]["vocab"]):
        model.pieces.add(piece=piece, score=score, type={0: 3, 1: 3, 2: 2}.get(number, 1))
    model.trainer_spec.model_type = 1
    model.trainer_spec.unk_id = 2
    written: bytes = model.SerializeToString()
    return written


def test_another_language_model_is_refused_before_its_weights_are_fetched(tmp_path: Path, base: Manifest) -> None:
    t5 = frozen("crossflow:512_t5_dit", tmp_path / "artifacts")
    weights = Path(t5.uri) / "text_encoder" / "model.safetensors"
    clip = tmp_path / "clip"
    shutil.copytree(base.uri, clip)
    (clip / "text_encoder" / "model.safetensors").unlink()  # whoever read it would fail by that
    with pytest.raises(ConfigError, match=r"\(clip\) gives states of width 128, CrossFlow .* reads 96"):
        frozen("crossflow:512_t5_dit", tmp_path / "artifacts", text_uri=str(clip))
    assert weights.is_file()
    with pytest.raises(ConfigError, match=r"\(t5\) gives states of width 96, CrossFlow .*clip, dimr reads 128"):
        frozen(FIRST, tmp_path / "artifacts", uri=t5.uri)
    with pytest.raises(ConfigError, match="reads its base's own language model"):
        frozen(FIRST, tmp_path / "artifacts", text_uri=str(clip))
    text, moments = {"text": ["bfloat16", [None, 96]]}, {"moments_64": ["bfloat16", [8, 16, 16]]}
    shards = Manifest("shards", str(tmp_path), (), {"fields": text | moments})
    of: dict[str, Any] = {"recipe": "crossflow:512_t5_dit", "profile": "laptop", "artifacts": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="gives states of width 128"):
        preprocess.run(raw=shards, base=base, samples_per_shard=0, batch_size=0, max_quarantined=0, **of)
    with pytest.raises(ConfigError, match="gives states of width 128"):
        train.run(shards=shards, base=base, **of)
    features: list[tuple[dict[str, Any], str]] = [
        ({"fields": {"text": ["<f2", [None, 128]]} | moments}, "text is of t5, 128 wide; this model reads t5, 96 wide"),
        (
            {"fields": text | moments, "language_model": "clip", "text_width": 96},
            "text is of clip, 96 wide; .* reads t5",
        ),
        ({"fields": text | {"moments_64": ["<f2", [8, 8, 8]]}}, r"moments_64 is \[8, 8, 8\], .* reads \[8, 16, 16\]"),
        ({"fields": text | {"moments_32": ["<f2", [8, 8, 8]]}}, "the features are of 32 px, the model reads 64"),
    ]
    for metadata, said in features:
        with pytest.raises(ConfigError, match=said):
            train.run(shards=Manifest("shards", str(tmp_path), (), metadata), base=t5, **of)
