"""CrossFlow's checkpoints to folders and back, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from atelier.cli import main
from atelier.convert.crossflow import TOWER, expected_shapes, identify, to_folder, to_released
from atelier.errors import ConfigError, DataError
from atelier.models.crossflow.configs import RELEASED, CrossFlowConfig
from atelier.sampling.crossflow import CrossFlowPipeline
from tests.models.crossflow.tiny import DIMR, DIT, KNOWN, TEXT, base, made

CLIP = CrossFlowConfig(DIMR.backbone, DIMR.flow, TEXT | {"width": 128, "tokens": 16}, DIMR.latent_shape, DIMR.tower)


@pytest.fixture(params=["tiny_dit", "tiny_dimr"])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def _checkpoint(folder: Path, config: CrossFlowConfig, file: str = "nnet.pth") -> tuple[Path, dict[str, torch.Tensor]]:
    state = made(config).released_state()
    torch.save(state, folder / file)
    return folder / file, state


def test_there_and_back_with_the_tower(name: str, tmp_path: Path) -> None:
    path, state = _checkpoint(tmp_path, KNOWN[name])
    done = to_folder(path, tmp_path / "folder", keep_tower=True, known=KNOWN)
    assert done.configuration == name
    assert done.parameters == sum(t.numel() for k, t in state.items() if not k.startswith("open_clip"))
    to_released(tmp_path / "folder", tmp_path / "back.pth", known=KNOWN)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_the_tower_stays_out(name: str, tmp_path: Path) -> None:
    """The way back still loads strictly, with a fresh tower that the account names."""
    path, state = _checkpoint(tmp_path, KNOWN[name])
    done = to_folder(path, tmp_path / "folder", known=KNOWN)
    assert not (tmp_path / "folder" / TOWER).exists()
    assert any(line.startswith("left out the image tower") for line in done.lines)
    back = to_released(tmp_path / "folder", tmp_path / "back.pth", known=KNOWN)
    assert any("a fresh one" in line for line in back.lines)
    model, loaded = made(KNOWN[name], seed=3), torch.load(tmp_path / "back.pth", weights_only=True)
    model.load_released(loaded)
    for key, tensor in state.items():
        assert torch.equal(loaded[key], tensor) is not key.startswith("open_clip"), key


def test_a_folder_with_a_base_draws(tmp_path: Path) -> None:
    path, _ = _checkpoint(tmp_path, CLIP)
    to_folder(path, tmp_path / "folder", base=base(), known={"own": CLIP})
    pipeline = CrossFlowPipeline.from_pretrained(tmp_path / "folder")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae.config.scaling_factor == 0.2301
    picture = pipeline("a two", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
    direct = CrossFlowPipeline.around(base(), made(CLIP), latent_scale=0.2301)
    wanted = direct("a two", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
    np.testing.assert_array_equal(picture.images, wanted.images)
    index = json.loads((tmp_path / "folder/model_index.json").read_text())
    assert index["flow"] == ["atelier.models.crossflow.dimr", "CrossFlowDiMR"]


def test_half_precision_and_shards(tmp_path: Path) -> None:
    path, _ = _checkpoint(tmp_path, DIT)
    to_folder(path, tmp_path / "folder", dtype="bf16", max_shard_size="50KB", known=KNOWN)
    assert (tmp_path / "folder/flow/diffusion_pytorch_model.safetensors.index.json").is_file()
    to_released(tmp_path / "folder", tmp_path / "back.safetensors", known=KNOWN)
    assert (tmp_path / "back.safetensors").stat().st_size > 0


def test_keys_that_do_not_fit_are_listed(name: str, tmp_path: Path) -> None:
    _, state = _checkpoint(tmp_path, KNOWN[name])
    state["extra.weight"] = torch.zeros(2)
    missing = next(key for key in state if key.startswith("context_encoder.layers.0.attn.W_Q"))
    del state[missing]
    bent = "context_encoder.layers.0.norm1.g"
    state[bent] = torch.zeros(5)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ConfigError) as error:
        to_folder(tmp_path / "bad.pth", tmp_path / "folder", known=KNOWN)
    said = str(error.value)
    assert f"nearest to {name}" in said
    assert f"1 missing key: {missing}" in said
    assert "1 unknown key: extra.weight" in said
    assert f"1 misshapen key: {bent} (5,) for (32,)" in said
    assert not (tmp_path / "folder").exists()


def test_another_configuration_is_named(tmp_path: Path) -> None:
    path, _ = _checkpoint(tmp_path, DIMR)
    with pytest.raises(ConfigError, match="is CrossFlow tiny_dimr, not tiny_dit"):
        to_folder(path, tmp_path / "folder", configuration="tiny_dit", known=KNOWN)
    with pytest.raises(ConfigError, match="no CrossFlow 'huge'"):
        to_folder(path, tmp_path / "folder", configuration="huge", known=KNOWN)


def test_every_released_configuration_is_told_apart() -> None:
    for name, config in RELEASED.items():
        shapes = expected_shapes(config)
        assert identify(shapes, "it") == name
    shapes = expected_shapes(RELEASED["512px_t5_dit"])
    with pytest.raises(ConfigError, match="is CrossFlow 512px_t5_dit, not 256px_clip_dimr"):
        identify(shapes, "it", "256px_clip_dimr")


def test_the_nearest_is_of_its_kind() -> None:
    """A twin's names are those of its kind, although a DiT has fewer of them that could be missing."""
    for kind, small in ((r"\w+_dimr|training_demo", DIMR), (r"\w+_dit", DIT)):
        with pytest.raises(ConfigError, match=rf"nearest to ({kind})\)"):
            identify(expected_shapes(small), "it")
    shapes = expected_shapes(RELEASED["512px_t5_dimr"])
    with pytest.raises(ConfigError, match=r"nearest to 512px_t5_dimr\)"):
        identify(dict(list(shapes.items())[5:]), "it")


def test_another_language_model_is_refused(tmp_path: Path) -> None:
    path, _ = _checkpoint(tmp_path, DIMR)
    with pytest.raises(ConfigError, match="states of width 128, CrossFlow tiny_dimr reads 32"):
        to_folder(path, tmp_path / "folder", base=base(), known=KNOWN)


def test_another_language_model_of_the_same_width_is_refused(tmp_path: Path) -> None:
    """T5-base is as wide as CLIP ViT-L/14; here T5's twin is made as wide as CLIP's."""
    path, _ = _checkpoint(tmp_path, CLIP)
    t5 = shutil.copytree(base(), tmp_path / "t5")
    (t5 / "text_encoder" / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 128}))
    known = {"own_clip": replace(CLIP, language_model="clip"), "own_t5": replace(DIT, language_model="t5")}
    with pytest.raises(ConfigError, match=r"\(t5\) gives states of width 128, CrossFlow own_clip reads 128 \(clip\)"):
        to_folder(path, tmp_path / "folder", base=t5, known=known)
    assert not (tmp_path / "folder").exists()
    to_folder(path, tmp_path / "folder", base=base(), known=known)
    assert {name: config.language_model for name, config in RELEASED.items()} == {
        name: "t5" if "t5" in name else "clip" for name in RELEASED
    }


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = _checkpoint(tmp_path, DIT)
    assert main(["convert-crossflow", str(path), str(tmp_path / "folder")]) == 2
    assert "is no CrossFlow that was released (nearest to" in capsys.readouterr().err
    assert main(["convert-crossflow", str(tmp_path), str(tmp_path / "back.pth")]) == 3
    assert "holds no weights" in capsys.readouterr().err


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("run",)

    torch.save({"flow": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match=r"more than weights|open safely"):
        to_folder(tmp_path / "bad.pth", tmp_path / "folder", known=KNOWN)
    with pytest.raises(DataError, match="no such file"):
        to_folder(tmp_path / "absent.pth", tmp_path / "folder", known=KNOWN)
    path, _ = _checkpoint(tmp_path, DIT)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(ConfigError, match="exists already"):
        to_folder(path, tmp_path / "taken", known=KNOWN)
