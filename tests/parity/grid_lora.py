"""LoRA files of FLUX: every format into every other (``lora``), peft's adapter, kohya's names, the tiny FLUX itself."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from atelier.convert.lora import Lora, folded
from atelier.convert.lora_command import convert_lora
from atelier.convert.lora_forms import FORMS, detect, parse
from atelier.convert.lora_metadata import config_of
from atelier.convert.lora_names import kohya_name, of_diffusers
from atelier.convert.lora_read import header_of_file, interpreted, read_lora
from atelier.convert.lora_write import kohya_file, peft_state
from atelier.convert.weights import Weights, of_state
from tests.parity.case import Case, Comparison
from tests.parity.grid import FLOAT, neighbour, tiny_flux


def flux_tiny_base(case: Case) -> Comparison:
    """The tiny FLUX answers as upstream's did: what all other cases stand on."""
    given = load_file(neighbour(case, "lora_io"))
    return Comparison({"out_base": _answer(tiny_flux(case), given)}, {"out_base": given["out_base"]}, FLOAT)


def lora(case: Case) -> Comparison:
    """From each file every format, bit for bit; with what is written, diffusers' pipeline answers as upstream's did."""
    ours: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for source in ("diffusers", "kohya", "peft_adapter", "peft_state"):
            start = _source(case, source, Path(place))
            alpha = case.spec["lora"]["alpha"] if source == "peft_state" else None
            for form in ("diffusers", "kohya", "aitoolkit", "peft"):
                target = Path(place) / f"{source}-{form}" / ("folder" if form == "peft" else "x.safetensors")
                convert_lora(start, target, form, alpha=alpha, dtype="fp16" if form == "aitoolkit" else "")
                ours[f"{source} → {form}"] = _same(target, _file(case, "peft_adapter" if form == "peft" else form))
        ours |= _names(case)
        written = Path(place) / "kohya-diffusers" / "x.safetensors"
        said = json.loads(header_of_file(written)["lora_adapter_metadata"])
        model, scale = tiny_flux(case), case.spec["lora"]["adapter_scale_for_scaled_outputs"]
        state, metadata = FluxPipeline.lora_state_dict(written, return_lora_metadata=True)
        FluxPipeline.load_lora_into_transformer(state, None, model, "own", metadata=metadata)
    expected: dict[str, Any] = dict.fromkeys(ours, True)
    folded_down = {name: folded(delta, "down") for name, delta in read_lora(_file(case, "kohya")).lora.items()}
    ours["from_kohya"] = _equal(
        peft_state(folded_down, "transformer."), _that_change(load_file(_file(case, "from_kohya")))
    )
    ours["rank and alpha"] = (said["transformer.r"], said["transformer.lora_alpha"])
    expected |= {"from_kohya": True, "rank and alpha": (case.spec["lora"]["rank"], case.spec["lora"]["alpha"])}

    given = load_file(_file(case, "io"))
    changed = read_lora(_file(case, "diffusers")).lora
    fused = load_file(case.path.with_name(case.spec["files"]["fused"]))
    own = tiny_flux(case)
    with torch.no_grad():
        for name, delta in changed.items():
            own.get_submodule(name).weight += scale * delta.dense()  # type: ignore[operator, union-attr]
    ours |= {f"fused.{name}": tensor for name, tensor in own.state_dict().items()}
    expected |= {f"fused.{name}": tensor for name, tensor in fused.items()}
    ours |= {"out_lora_scale1": _answer(model, given), "out_fused_scaled": _answer(own, given)}
    model.set_adapters("own", scale)
    ours["out_lora_scaled"] = _answer(model, given)
    expected |= {name: given[name] for name in ("out_lora_scale1", "out_lora_scaled", "out_fused_scaled")}
    return Comparison(ours, expected, FLOAT)


def _source(case: Case, form: str, place: Path) -> Path:
    """A file as it lies in the wild: peft's has its configuration beside it."""
    if form != "peft_adapter":
        return _file(case, form)
    folder = place / "adapter"
    folder.mkdir()
    shutil.copyfile(_file(case, form), folder / "adapter_model.safetensors")
    shutil.copyfile(_file(case, form).with_suffix(".json"), folder / "adapter_config.json")
    return folder


def _file(case: Case, form: str) -> Path:
    return case.path.with_name(str(case.spec["files"][form]).split()[0])


def _same(target: Path, golden: Path) -> bool:
    path = target / "adapter_model.safetensors" if target.is_dir() else target
    return _equal(of_state(load_file(path)), load_file(golden))


def _equal(ours: Weights, golden: dict[str, Tensor]) -> bool:
    return ours.keys() == golden.keys() and all(
        torch.equal(ours[name].tensor(), tensor) and ours[name].dtype == tensor.dtype for name, tensor in golden.items()
    )


def _that_change(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the layers that diffusers' converter adds: parts of a fused one that were not trained, up factor zero."""
    idle = {name.removesuffix("lora_B.weight") for name, t in golden.items() if "lora_B" in name and not t.any()}
    return {name: t for name, t in golden.items() if name.partition("lora_")[0] not in idle}


def _names(case: Case) -> dict[str, bool]:
    """The case's two tables of names, with shapes."""
    found = read_lora(_file(case, "diffusers")).lora
    fused = kohya_file(found).weights
    ours = {}
    for row in case.spec["keymap"]:
        layer, _, part = row["peft_state"].partition(".lora_")
        factor = found[layer].down if part.startswith("A") else found[layer].up
        ours[row["peft_state"]] = (
            list(factor.shape) == row["shape"] and list(fused[row["kohya"]].shape) == row["kohya_shape"]
        )
        ours |= {
            row[name]: parse(FORMS[form], row[name]) is not None
            for name, form in (("peft_adapter", "peft"), ("diffusers", "diffusers"), ("kohya", "kohya"))
        }
    for row in case.spec["kohya_modules"]:
        place = of_diffusers(row["diffusers"])
        ours[row["diffusers"]] = place is not None and f"lora_unet_{kohya_name(*place)}" == row["kohya"]
    return ours


def lora_peft_adapter(case: Case) -> Comparison:
    """peft's configuration: read with the weights, and written so that peft finds the same layers of the model."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copyfile(case.path, folder / "adapter_config.json")
        shutil.copyfile(case.path.with_suffix(".safetensors"), folder / "adapter_model.safetensors")
        found = read_lora(folder).lora
        written = config_of(found)
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    layers = [name for name, part in tiny_flux(case).named_modules() if isinstance(part, torch.nn.Linear)]
    ends, exact = LoraConfig(**case.spec), LoraConfig(**written)
    ours: dict[str, Any] = {name: written[name] for name in case.spec if name != "target_modules"}
    ours["init_lora_weights"] = case.spec["init_lora_weights"]  # how it once began is not in the weights
    expected: dict[str, Any] = {name: value for name, value in case.spec.items() if name != "target_modules"}
    ours["layers"] = [name for name in layers if check_target_module_exists(exact, name)]
    expected["layers"] = [name for name in layers if check_target_module_exists(ends, name)]
    return Comparison(ours, expected, (0.0, 0.0))


def kohya_keymap(case: Case) -> Comparison:
    """Every name of kohya's, at FLUX's own sizes: diffusers' names and shapes, and the very same change.

    Diffusers' converter leaves ``transformer.`` out of the ten layers outside of blocks, which are then not loaded, and
    ignores the last two's alpha; ours is held to the right names and alphas there.
    """
    ours: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    for number, row in enumerate(case.spec):
        name = f"{number}.{row['kohya']}"
        down = torch.randn(row["rank"], row["in"], generator=generator)
        up = torch.randn(row["out"], row["rank"], generator=generator)
        weights = of_state(
            {
                f"{row['kohya']}.lora_down.weight": down,
                f"{row['kohya']}.lora_up.weight": up,
                f"{row['kohya']}.alpha": torch.tensor(float(row["alpha"])),
            }
        )
        form, meanings = detect(weights, name)
        found = interpreted(weights, form, meanings, None, None, name).lora
        written = {key: list(weight.shape) for key, weight in peft_state(found, "transformer.").items()}
        prefix = "" if row["has_transformer_prefix"] else "transformer."
        ours[name], expected[name] = written, {prefix + key: shape for key, shape in row["diffusers"].items()}
        wanted = row["alpha"] / row["rank"] * (up @ down)
        ours[f"{name} ΔW"], expected[f"{name} ΔW"] = _error(found, wanted, row["kohya"]) < 1e-5, True
    return Comparison(ours, expected)


def _error(found: Lora, wanted: Tensor, name: str) -> float:
    """The largest difference of the layers' changes, put one under the other, from the fused one's."""
    if name.endswith("adaLN_modulation_1"):
        wanted = torch.cat(wanted.chunk(2)[::-1])
    order = [f"{end}." for end in ("to_q", "add_q_proj", "to_k", "add_k_proj", "to_v", "add_v_proj", "proj_mlp")]
    layers = sorted(found, key=lambda layer: next((n for n, end in enumerate(order) if f"{layer}.".endswith(end)), 0))
    return float((torch.cat([found[layer].dense() for layer in layers]) - wanted).abs().max())


def _answer(model: FluxTransformer2DModel, given: dict[str, Tensor]) -> Tensor:
    names = ["hidden_states", "timestep", "encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids"]
    names += ["guidance"] if model.config.guidance_embeds else []
    with torch.no_grad():
        found: Tensor = model(**{name: given[name] for name in names}, return_dict=False)[0]
    return found


KINDS: dict[str, Callable[[Case], dict[str, Tensor] | Comparison]] = {
    "flux_tiny_base": flux_tiny_base,
    "lora": lora,
    "lora_peft_adapter": lora_peft_adapter,
    "kohya_keymap": kohya_keymap,
}
