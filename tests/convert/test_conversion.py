"""Every form into every other and back, bit for bit; and what is wrong is said before anything is written."""

import json
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from atelier.cli import main
from atelier.convert.conversion import convert
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import adopt, is_adapter_key
from tests.convert import tiny

FAMILIES = list(tiny.CONFIGS)


def adapter_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if is_adapter_key(name)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def read_unet(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_diffusers_to_original_and_back(family: str, ending: str, tmp_path: Path) -> None:
    state = tiny.write_unet(tmp_path / "unet", family)
    made = convert(tmp_path / "unet", tmp_path / f"original.{ending}", "original")
    assert (made.form, made.family) == ("unet", family)
    assert made.trained == sum(t.numel() for t in adapter_of(state).values())
    assert made.trained + made.frozen == sum(t.numel() for t in state.values())
    back = convert(tmp_path / f"original.{ending}", tmp_path / "back")
    assert (back.form, back.to, back.family) == ("original", "diffusers", family)
    assert_same(read_unet(tmp_path / "back/unet"), state)
    wanted, found = (json.loads((tmp_path / p / "config.json").read_text()) for p in ("unet", "back/unet"))
    assert found["attention_type"] == wanted["attention_type"] == "gated"
    for name, value in tiny.CONFIGS[family].items():
        assert found[name] == value, name


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_and_base_make_the_whole_and_the_whole_gives_the_adapter(family: str, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", family)
    adapter = adapter_of(tiny.state(family))
    save_file(adapter, tmp_path / "adapter.safetensors")
    convert(tmp_path / "adapter.safetensors", tmp_path / "whole", base=tmp_path / "base")
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "whole/unet")
    assert_same(stock.state_dict(), base | adapter)
    adopt(stock)
    assert (tmp_path / "whole/scheduler/scheduler_config.json").is_file()
    convert(tmp_path / "whole", tmp_path / "again.safetensors")
    assert_same(load_file(tmp_path / "again.safetensors"), adapter)
    convert(tmp_path / "adapter.safetensors", tmp_path / "o.pth", base=tmp_path / "base")
    convert(tmp_path / "o.pth", tmp_path / "last.safetensors", "adapter")
    assert_same(load_file(tmp_path / "last.safetensors"), adapter)


def test_original_names_without_a_base_and_with_one(tmp_path: Path) -> None:
    """A bare adapter under its original names needs a base to say where its blocks are."""
    base = tiny.write_base(tmp_path / "base", "SD1")
    state = base | adapter_of(tiny.state("SD1"))
    save_file(state, tmp_path / "whole.safetensors")
    convert(tmp_path / "whole.safetensors", tmp_path / "o.safetensors", "original", base=tmp_path / "base")
    alone = {n: t for n, t in load_file(tmp_path / "o.safetensors").items() if "fuser" in n or "position_net" in n}
    save_file(alone, tmp_path / "alone.safetensors")
    with pytest.raises(ConfigError, match="--base"):
        convert(tmp_path / "alone.safetensors", tmp_path / "out")
    convert(tmp_path / "alone.safetensors", tmp_path / "out", base=tmp_path / "base")
    assert_same(read_unet(tmp_path / "out/unet"), state)


def test_the_parts_of_an_original_checkpoint_are_named(tmp_path: Path) -> None:
    tiny.write_unet(tmp_path / "unet", "SD1")
    convert(tmp_path / "unet", tmp_path / "bare.pth")
    unet = torch.load(tmp_path / "bare.pth", weights_only=True)["model"]
    ema = {name: tensor + 1 for name, tensor in unet.items()}
    parts = {"autoencoder": {"a": torch.zeros(2)}, "text_encoder": {"b": torch.zeros(2)}, "iters": 7}
    torch.save({"model": unet, "ema": ema, "config_dict": {"steps": 3}} | parts, tmp_path / "full.pth")
    made = convert(tmp_path / "full.pth", tmp_path / "out", "unet")
    text = "\n".join(made.lines)
    assert "autoencoder: 1 tensors" in text
    assert "config_dict" in text
    assert_same(read_unet(tmp_path / "out"), tiny.state("SD1"))
    convert(tmp_path / "full.pth", tmp_path / "averaged", "unet", average=True)
    assert_same(read_unet(tmp_path / "averaged"), {n: t + 1 for n, t in tiny.state("SD1").items()})
    prefixed = {f"model.diffusion_model.{n}": t for n, t in unet.items()} | {"first_stage_model.x": torch.ones(1)}
    torch.save({"state_dict": prefixed}, tmp_path / "pipeline.ckpt")
    made = convert(tmp_path / "pipeline.ckpt", tmp_path / "from_pipeline", "unet")
    assert "first_stage_model: 1 tensors" in "\n".join(made.lines)
    assert_same(read_unet(tmp_path / "from_pipeline"), tiny.state("SD1"))


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_types(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = tiny.write_unet(tmp_path / "unet", "SD1")
    made = convert(tmp_path / "unet", tmp_path / "half", "unet", dtype=name)
    assert str(dtype).removeprefix("torch.") in made.lines[-2]
    assert_same(read_unet(tmp_path / "half"), {n: t.to(dtype) for n, t in state.items()})
    convert(tmp_path / "half", tmp_path / "o.pth")  # kept as stored
    convert(tmp_path / "o.pth", tmp_path / "float", "unet", dtype="fp32")
    assert_same(read_unet(tmp_path / "float"), {n: t.to(dtype).float() for n, t in state.items()})


def test_shards_open_in_diffusers_and_here(tmp_path: Path) -> None:
    state = tiny.write_unet(tmp_path / "unet", "SD2")
    convert(tmp_path / "unet", tmp_path / "sharded", "unet", max_shard_size="2MB")
    shards = sorted((tmp_path / "sharded").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    largest = max(tensor.numel() * 4 for tensor in state.values())
    assert all(path.stat().st_size < max(2_000_000, largest) + 100_000 for path in shards)
    assert_same(UNet2DConditionModel.from_pretrained(tmp_path / "sharded").state_dict(), state)
    convert(tmp_path / "sharded", tmp_path / "one", "unet")
    assert_same(read_unet(tmp_path / "one"), state)
    shards[1].unlink()
    with pytest.raises(DataError, match="is missing, which"):
        convert(tmp_path / "sharded", tmp_path / "two", "unet")


def test_bin_weights_of_a_diffusers_folder(tmp_path: Path) -> None:
    state = tiny.write_unet(tmp_path / "pipe/unet", "SD1")
    (tmp_path / "pipe/unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, tmp_path / "pipe/unet/diffusion_pytorch_model.bin")
    convert(tmp_path / "pipe", tmp_path / "out", "unet")
    assert_same(read_unet(tmp_path / "out"), state)


def test_wrong_keys_are_counted_and_listed_and_nothing_is_written(tmp_path: Path) -> None:
    tiny.write_unet(tmp_path / "unet", "SD1")
    path = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for name in [n for n in state if ".fuser.attn." in n]:
        del state[name]
    state["position_net.linears_text.0.weight"] = torch.zeros(1)
    state["conv_in.bias"] = torch.zeros(3)
    save_file(state, path)
    with pytest.raises(ConfigError) as error:
        convert(tmp_path / "unet", tmp_path / "out")
    text = str(error.value)
    assert "30 missing keys: " in text
    assert re.search(r"down_blocks\.\*\.attentions\.\*\.transformer_blocks\.\*\.fuser\.attn\.to_k\.weight \(\d\)", text)
    assert "1 unknown key: position_net.linears_text.0.weight" in text
    assert "1 misshapen key: conv_in.bias (3,) for (32,)" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unet"]


def test_an_unknown_original_key(tmp_path: Path) -> None:
    tiny.write_unet(tmp_path / "unet", "SD1")
    convert(tmp_path / "unet", tmp_path / "o.safetensors", "original")
    state = load_file(tmp_path / "o.safetensors") | {"grounding_downsampler.weight": torch.zeros(1)}
    save_file(state, tmp_path / "o.safetensors")
    with pytest.raises(ConfigError, match=r"1 unknown key: grounding_downsampler\.weight"):
        convert(tmp_path / "o.safetensors", tmp_path / "out")


def test_an_adapter_alone_is_whole_too(tmp_path: Path) -> None:
    adapter = adapter_of(tiny.state("SD1"))
    del adapter["down_blocks.0.attentions.0.transformer_blocks.0.fuser.alpha_attn"]
    save_file(adapter, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"1 missing key: down_blocks\.0\.attentions\.0\..*alpha_attn"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match="--base"):
        convert(tmp_path / "a.safetensors", tmp_path / "whole")


def test_an_adapter_of_another_family(tmp_path: Path) -> None:
    tiny.write_base(tmp_path / "base", "SDXL")
    save_file(adapter_of(tiny.state("SD1")), tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"does not fit the UNet \(SDXL\).*missing.*unknown"):
        convert(tmp_path / "a.safetensors", tmp_path / "out", base=tmp_path / "base")


class Payload:
    """A pickle that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    evil = tmp_path / "evil.pth"
    torch.save({"model": Payload(tmp_path / "made")}, evil)
    old = tmp_path / "old.ckpt"
    old.write_bytes(pickle.dumps({"model": Payload(tmp_path / "made")}))
    text, cut = tmp_path / "text.pth", tmp_path / "cut.safetensors"
    text.write_text("hello")
    save_file({"x": torch.zeros(100)}, cut)
    cut.write_bytes(cut.read_bytes()[:-8])
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    half = tmp_path / "half.pth"
    half.write_bytes((tmp_path / "other.pth").read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    for source in (evil, old, text, cut, half, tmp_path / "other.pth", tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(DataError) as error:
            convert(source, tmp_path / "out")
        assert str(source) in error.value.what
        assert error.value.fix
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "out").exists()


def test_settings_of_a_library_that_is_not_here_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's checkpoints carry omegaconf's objects; they become empty stand-ins, unread."""
    tiny.write_unet(tmp_path / "unet", "SD1")
    convert(tmp_path / "unet", tmp_path / "bare.pth")
    unet = torch.load(tmp_path / "bare.pth", weights_only=True)["model"]
    with monkeypatch.context() as patch:
        library, module = ModuleType("omegaconf"), ModuleType("omegaconf.dictconfig")
        kind = type("DictConfig", (), {"__module__": module.__name__})
        vars(module)["DictConfig"] = kind
        patch.setitem(sys.modules, library.__name__, library)
        patch.setitem(sys.modules, module.__name__, module)
        settings = kind()
        vars(settings)["content"] = {"batch_size": 2}
        torch.save({"model": unet, "config_dict": settings}, tmp_path / "full.pth")
    convert(tmp_path / "full.pth", tmp_path / "out", "unet")
    assert_same(read_unet(tmp_path / "out"), tiny.state("SD1"))


def test_a_plain_model_is_no_grounded_one(tmp_path: Path) -> None:
    tiny.write_base(tmp_path / "base", "SD1")
    with pytest.raises(DataError, match="no GLIGEN layers"):
        convert(tmp_path / "base", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"to": "onnx"}, "'onnx' is no form"),
        ({"dtype": "int8"}, "'int8' is no type"),
        ({"max_shard_size": "much"}, "'much' is no size"),
        ({"base": Path("/absent")}, "/absent holds no UNet"),
        ({"to": "igligen-xl"}, "is for SDXL|needs the text encoders"),
        ({"average": True}, "no moving average"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], said: str, tmp_path: Path) -> None:
    tiny.write_unet(tmp_path / "unet", "SD1")
    with pytest.raises((ConfigError, DataError), match=said):
        convert(tmp_path / "unet", tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_unet(tmp_path / "unet", "SDXL")
    assert main(["convert", str(tmp_path / "unet"), str(tmp_path / "o.pth"), "--dtype", "fp16"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("read  UNet folder ")
    assert ": SDXL, " in out
    assert "trained and" in out
    assert "float16" in out
    assert main(["convert", str(tmp_path / "unet"), str(tmp_path / "o.pth")]) == 2
    assert "exists already" in capsys.readouterr().err
