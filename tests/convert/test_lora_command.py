"""``atelier convert-lora``, and what diffusers and peft themselves make of what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from atelier.cli import main
from atelier.convert.lora import Lora, folded
from atelier.convert.lora_command import convert_lora
from atelier.convert.lora_metadata import alphas_of, config_of, header_of
from atelier.convert.lora_read import header_of_file, read_lora
from atelier.convert.lora_write import diffusers_file, peft_state, write_file
from atelier.errors import ConfigError, DataError
from atelier.models.flux.lora import add_lora, lora_state
from atelier.models.flux.velocity import velocity
from tests.convert.lora_files import OUTER, delta, same_change, whole_lora
from tests.models.flux.tiny import CONFIG, inputs, tiny_flux


def _written(tmp_path: Path, lora: Lora) -> Path:
    path = tmp_path / "start.safetensors"
    write_file(diffusers_file(lora), path, None)
    return path


def _small(lora: Lora) -> Lora:
    """Changes small enough that the model's answer stays one."""
    from dataclasses import replace

    return {name: replace(delta, alpha=delta.alpha / 64) for name, delta in lora.items()}


def _answer(model: Any) -> Tensor:
    with torch.no_grad():
        return velocity(model, **inputs())


def _changed(lora: Lora) -> FluxTransformer2DModel:
    model = tiny_flux()
    with torch.no_grad():
        for name, delta in lora.items():
            model.get_submodule(name).weight += delta.dense()  # type: ignore[operator, union-attr]
    return model


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("only", [None, OUTER, ("proj_out",)])
def test_every_way_round_keeps_the_change(tmp_path: Path, mixed: bool, only: tuple[str, ...] | None) -> None:
    lora = {name: delta for name, delta in whole_lora(mixed).items() if only is None or name in only}
    path = _written(tmp_path, lora)
    for number, form in enumerate(("kohya", "peft", "aitoolkit", "diffusers", "aitoolkit", "kohya", "diffusers")):
        target = tmp_path / (f"{number}" if form == "peft" else f"{number}.safetensors")
        convert_lora(path, target, form)
        assert same_change(read_lora(target).lora, lora), form
        path = target


@pytest.mark.parametrize("only", [None, OUTER, ("proj_out",)])
def test_diffusers_loads_what_we_write(tmp_path: Path, only: tuple[str, ...] | None) -> None:
    """By the pipeline's own two steps; ``proj_out`` is the last layer and no block's."""
    lora = _small({name: delta for name, delta in whole_lora().items() if only is None or name in only})
    wanted = _answer(_changed(lora))
    for form in ("diffusers", "aitoolkit"):
        target = tmp_path / f"{form}.safetensors"
        convert_lora(_written(tmp_path, lora), target, form)
        model = tiny_flux()
        state, metadata = FluxPipeline.lora_state_dict(target, return_lora_metadata=True)
        FluxPipeline.load_lora_into_transformer(state, None, model, metadata=metadata)
        layers = {name for name, part in model.named_modules() if hasattr(part, "lora_A")}
        assert layers == set(lora), form
        torch.testing.assert_close(_answer(model), wanted, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(wanted, _answer(tiny_flux()), atol=1e-3)


@pytest.mark.parametrize("only", [None, OUTER, ("proj_out",)])
def test_peft_loads_what_we_write(tmp_path: Path, only: tuple[str, ...] | None) -> None:
    lora = _small({name: delta for name, delta in whole_lora().items() if only is None or name in only})
    convert_lora(_written(tmp_path, lora), tmp_path / "adapter", "peft")
    model = PeftModel.from_pretrained(tiny_flux(), str(tmp_path / "adapter"))
    layers = {n.removeprefix("base_model.model.") for n, part in model.named_modules() if hasattr(part, "lora_A")}
    assert layers == set(lora)
    torch.testing.assert_close(_answer(model.base_model.model), _answer(_changed(lora)), atol=2e-5, rtol=1e-5)


def test_what_peft_saves_is_read(tmp_path: Path) -> None:
    from peft import get_peft_model

    model = get_peft_model(
        tiny_flux(),
        LoraConfig(
            r=4, lora_alpha=2, target_modules=["to_q", "proj_mlp"], rank_pattern={"proj_mlp": 6}, use_rslora=True
        ),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    found = read_lora(tmp_path / "adapter")
    assert found.form == "peft"
    assert len(found.lora) == 2 * 2 + 2
    torch.testing.assert_close(_answer(_changed(found.lora)), _answer(model.base_model.model), atol=1e-5, rtol=1e-5)


def test_peft_on_bfls_own_model_tells_its_alpha_beside(tmp_path: Path) -> None:
    layer = "base_model.model.double_blocks.0.img_attn.qkv"
    tensors = {f"{layer}.lora_A.weight": torch.randn(5, 32), f"{layer}.lora_B.weight": torch.randn(96, 5)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 5, "lora_alpha": 10, "target_modules": ["qkv"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = read_lora(tmp_path)
    assert found.form == "bfl"
    assert {delta.scale for delta in found.lora.values()} == {2.0}
    assert list(found.lora) == [f"transformer_blocks.0.attn.to_{end}" for end in "kqv"]


def test_an_alpha_that_is_none_is_an_error(tmp_path: Path) -> None:
    convert_lora(_written(tmp_path, whole_lora()), tmp_path / "kohya.safetensors", "kohya")
    tensors = load_file(tmp_path / "kohya.safetensors")
    tensors["lora_unet_img_in.alpha"] = torch.tensor(float("nan"))
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(DataError, match="img_in has alpha nan"):
        read_lora(tmp_path / "odd.safetensors")


def test_what_diffusers_saves_is_read(tmp_path: Path) -> None:
    model = tiny_flux()
    add_lora(model, "diffusers", 4, 6.0)
    said = model.peft_config["default"].to_dict()
    FluxPipeline.save_lora_weights(tmp_path, lora_state(model), transformer_lora_adapter_metadata=said)
    found = read_lora(tmp_path)
    assert found.form == "diffusers"
    assert {delta.scale for delta in found.lora.values()} == {1.5}
    assert found.notes == []


def test_a_peft_state_needs_its_alpha(tmp_path: Path) -> None:
    model = tiny_flux()
    add_lora(model, "attention", 4, 6.0)
    path = tmp_path / "state.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in lora_state(model).items()}, path)
    with pytest.raises(ConfigError, match="does not say its alpha") as caught:
        read_lora(path)
    assert "--alpha" in caught.value.fix
    assert {delta.scale for delta in read_lora(path, alpha=6.0).lora.values()} == {1.5}
    with pytest.raises(ConfigError, match="says its alpha itself"):
        read_lora(_written(tmp_path, whole_lora()), alpha=6.0)


def test_without_a_header_diffusers_scale_is_one_and_said(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    weights = peft_state(whole_lora(mixed=False), "transformer.")
    save_file({name: weight.tensor() for name, weight in weights.items()}, path)
    found = read_lora(path)
    assert {delta.scale for delta in found.lora.values()} == {1.0}
    assert found.notes == ["no alpha of 50 layers in it: taken as their rank (scale 1)"]


def test_ai_toolkits_header_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "trained.safetensors"
    weights = peft_state({n: folded(d, "up") for n, d in whole_lora().items()}, "transformer.")
    header = {
        "training_info": '{"step": 250, "epoch": 1}',
        "software": '{"name": "ai-toolkit"}',
        "sshs_hash": "0",
    }
    save_file({name: weight.tensor() for name, weight in weights.items()}, path, metadata=header)
    assert read_lora(path).form == "aitoolkit"
    convert_lora(path, tmp_path / "again.safetensors", "aitoolkit", dtype="fp16")
    again = header_of_file(tmp_path / "again.safetensors")
    assert json.loads(again["training_info"])["step"] == 250
    assert "sshs_hash" not in again  # it was of other bytes


def test_the_last_layers_alpha_and_rank_are_its_own() -> None:
    """``proj_out`` is also the end of every single block's name, which peft's patterns would match."""
    names = {"proj_out": (2, 1.0), "single_transformer_blocks.0.proj_out": (4, 8.0), "x_embedder": (4, 8.0)}
    lora = {name: delta((8, 8), *settings) for name, settings in names.items()}
    config = config_of(lora)
    assert config["rank_pattern"]
    found = alphas_of(config, {name: change.rank for name, change in lora.items()}, "it")
    assert found == {name: alpha for name, (_, alpha) in names.items()}


def test_the_header_is_diffusers_and_the_same_each_time() -> None:
    lora = whole_lora()
    said = json.loads(header_of(lora)["lora_adapter_metadata"])
    assert (said["transformer.r"], said["transformer.lora_alpha"]) == (4, 8.0)
    assert said["transformer.rank_pattern"]
    LoraConfig(**{name.removeprefix("transformer."): value for name, value in said.items()})
    assert config_of(dict(reversed(lora.items()))) == config_of(lora)


def test_a_base_of_other_layers_is_named(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(CONFIG))
    path = _written(tmp_path, whole_lora())
    convert_lora(path, tmp_path / "fits.safetensors", "kohya", base=tmp_path)
    config.write_text(json.dumps(CONFIG | {"num_single_layers": 1, "joint_attention_dim": 32}))
    with pytest.raises(ConfigError) as caught:
        convert_lora(path, tmp_path / "no.safetensors", "kohya", base=tmp_path)
    assert "6 unknown keys" in caught.value.what
    assert "context_embedder (32, 24) for (32, 32)" in caught.value.what
    assert not (tmp_path / "no.safetensors").exists()
    with pytest.raises(DataError, match=r"no transformer's config\.json"):
        convert_lora(path, tmp_path / "no.safetensors", "kohya", base=tmp_path / "transformer" / "nothing")


def test_types(tmp_path: Path) -> None:
    path = _written(tmp_path, whole_lora())
    convert_lora(path, tmp_path / "half.safetensors", "kohya", dtype="bf16")
    with safe_open(tmp_path / "half.safetensors", framework="pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys() if not key.endswith("alpha")}  # noqa: SIM118
    assert kinds == {"BF16"}
    assert {t.dtype for k, t in load_file(tmp_path / "half.safetensors").items() if k.endswith("alpha")} == {
        torch.float32
    }


@pytest.mark.parametrize(
    ("to", "target", "said"),
    [
        ("comfy", "x.safetensors", "no LoRA format"),
        ("peft", "x.safetensors", "peft is written as a folder"),
        ("kohya", "x", "kohya is written as a file"),
        ("aitoolkit", "x", "aitoolkit is written as a file"),
        ("diffusers", "start.safetensors", "exists already"),
    ],
)
def test_what_is_refused_before_anything_is_read(tmp_path: Path, to: str, target: str, said: str) -> None:
    path = _written(tmp_path, whole_lora())
    with pytest.raises(ConfigError, match=said):
        convert_lora(path, tmp_path / target, to)
    with pytest.raises(ConfigError, match="is no type"):
        convert_lora(path, tmp_path / "y.safetensors", "kohya", dtype="int8")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = _written(tmp_path, whole_lora())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="no whole safetensors file"):
        convert_lora(path, tmp_path / "x.safetensors", "kohya")
    with pytest.raises(DataError, match="no such file or folder"):
        read_lora(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds 0 files"):
        read_lora(tmp_path / "empty")
    save_file({"a": torch.ones(1)}, tmp_path / "empty" / "a.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "empty" / "b.safetensors")
    with pytest.raises(DataError, match="holds 2 files"):
        read_lora(tmp_path / "empty")


def test_configurations_that_do_not_fit(tmp_path: Path) -> None:
    lora = whole_lora(mixed=False)
    for changed, kind, said in (
        ({"r": 8}, DataError, "says rank 8 of"),
        ({"use_dora": True}, ConfigError, "sets use_dora"),
        ({"lora_alpha": None}, DataError, "says alpha None of"),
        ({"peft_type": "LOHA"}, ConfigError, "is of LOHA, not of LoRA"),
    ):
        folder = tmp_path / said[:8]
        convert_lora(_written(tmp_path, lora), folder, "peft")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | changed))
        with pytest.raises(kind, match=said):
            read_lora(folder)
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(DataError, match="no JSON object"):
        read_lora(folder)
    header = tmp_path / "header.safetensors"
    weights = peft_state(lora, "transformer.")
    save_file({n: w.tensor() for n, w in weights.items()}, header, metadata={"lora_adapter_metadata": "{"})
    with pytest.raises(DataError, match="no JSON object"):
        read_lora(header)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _written(tmp_path, whole_lora(mixed=False))
    assert main(["convert-lora", str(path), str(tmp_path / "out"), "--to", "diffusers", "--dtype", "fp16"]) == 0
    said = capsys.readouterr().out
    assert "read  diffusers LoRA" in said
    assert "50 layers" in said
    assert "rank 4, scale 2" in said
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
    assert main(["convert-lora", str(path), str(tmp_path / "out"), "--to", "diffusers"]) == 2
    assert "exists already" in capsys.readouterr().err
