"""Which format a file is, and that no key goes without a word."""

import pytest
import torch

from atelier.convert.lora import Lora
from atelier.convert.lora_forms import FORMS, detect
from atelier.convert.lora_names import PLACES, kohya_name, of_bfl, of_diffusers, of_kohya
from atelier.convert.lora_read import interpreted
from atelier.convert.lora_write import kohya_file, peft_state
from atelier.convert.weights import Weights, of_state
from atelier.errors import ConfigError, DataError
from tests.convert.lora_files import OUTER, delta, same_change, whole_lora


def _read(weights: Weights, alpha: float | None = None) -> Lora:
    form, meanings = detect(weights, "it")
    return interpreted(weights, form, meanings, None, alpha, "it").lora


@pytest.mark.parametrize("form", FORMS)
def test_each_formats_example_is_of_it(form: str) -> None:
    found, meanings = detect([FORMS[form].example], "it")
    assert found == form
    assert len(meanings) == 1


def test_every_name_has_one_way_there_and_back() -> None:
    for place in PLACES:
        for name in place.diffusers:
            own = name.replace("*", "7")
            block = "7" if "*" in name else ""
            assert of_diffusers(own) == (place, block)
            assert of_kohya(kohya_name(place, block)) == (place, block)
            assert of_bfl(place.bfl.replace("*", "7")) == (place, block)


def _bfl(lora: Lora, prefix: str, parts: tuple[str, str]) -> Weights:
    """As BFL's names are, by way of kohya's file: the same factors, dots for underscores."""
    from_kohya = {f"lora_unet_{place.bfl.replace('*', str(n)).replace('.', '_')}": place.bfl.replace("*", str(n))
                  for place in PLACES for n in range(2)}  # fmt: skip
    weights: Weights = {}
    for key, weight in kohya_file(lora).weights.items():
        layer, _, part = key.partition(".")
        for kohya, own in (("lora_down", parts[0]), ("lora_up", parts[1])):
            part = part.replace(kohya, own)
        weights[f"{prefix}{from_kohya[layer]}.{part}"] = weight
    return weights


@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model.", ""])
@pytest.mark.parametrize("parts", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_bfls_own_names(prefix: str, parts: tuple[str, str]) -> None:
    lora = whole_lora()
    weights = _bfl(lora, prefix, parts)
    assert detect(weights, "it")[0] == "bfl"
    assert same_change(_read(weights), lora)


def test_without_alpha_bfls_scale_is_one() -> None:
    tensors = {
        "diffusion_model.double_blocks.0.txt_attn.proj.lora_A.weight": torch.eye(4, 8),
        "diffusion_model.double_blocks.0.txt_attn.proj.lora_B.weight": torch.eye(8, 4),
    }
    found = _read(of_state(tensors))
    assert list(found) == ["transformer_blocks.0.attn.to_add_out"]
    assert found["transformer_blocks.0.attn.to_add_out"].scale == 1


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_xlabs_names(prefix: str) -> None:
    """1 is the image's stream, 2 the text's; q, k and v share their down factor."""
    image, text = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
    layers = {
        "double_blocks.3.processor.qkv_lora1": ("transformer_blocks.3.attn.", image, 8),
        "double_blocks.3.processor.proj_lora1": ("transformer_blocks.3.attn.", ("to_out.0",), 8),
        "double_blocks.3.processor.qkv_lora2": ("transformer_blocks.3.attn.", text, 8),
        "double_blocks.3.processor.proj_lora2": ("transformer_blocks.3.attn.", ("to_add_out",), 8),
        "single_blocks.11.processor.qkv_lora": ("single_transformer_blocks.11.attn.", image, 8),
        "single_blocks.11.processor.proj_lora": ("single_transformer_blocks.11.", ("proj_out",), 40),
    }
    tensors, wanted = {}, {}
    for seed, (name, (start, ends, inputs)) in enumerate(layers.items()):
        whole = delta((8 * len(ends), inputs), 4, 4.0, seed)
        tensors |= {f"{prefix}{name}.down.weight": whole.down.read(), f"{prefix}{name}.up.weight": whole.up.read()}
        for number, end in enumerate(ends):
            wanted[start + end] = whole.dense()[8 * number : 8 * (number + 1)]
    weights = of_state(tensors)
    assert detect(weights, "it")[0] == "xlabs"
    found = _read(weights)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].dense(), wanted[name]) for name in wanted)


def test_the_last_modulation_is_the_other_way_round() -> None:
    lora = {name: change for name, change in whole_lora().items() if name in OUTER}
    weights = kohya_file(lora).weights
    swapped = weights["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"].tensor()
    own = lora["norm_out.linear"].up.tensor()
    assert torch.equal(swapped[:32], own[32:])
    assert same_change(_read(weights), lora)


def test_keys_of_no_meaning_are_all_named() -> None:
    weights = peft_state(whole_lora(), "transformer.")
    odd = {f"transformer.transformer_blocks.{n}.attn.to_q.lora_magnitude_vector": torch.ones(2) for n in range(2)}
    odd |= {"transformer.conv_in.lora_A.weight": torch.ones(2, 2)}
    with pytest.raises(ConfigError) as caught:
        detect(weights | of_state(odd), "it")
    assert "3 unknown keys" in caught.value.what
    assert "transformer.transformer_blocks.*.attn.to_q.lora_magnitude_vector (2)" in caught.value.what
    assert "transformer.conv_in.lora_A.weight" in caught.value.what


def test_kohyas_numbers_are_one_pattern() -> None:
    weights = kohya_file(whole_lora()).weights
    odd = {f"lora_te1_text_model_encoder_layers_{n}_mlp_fc1.alpha": torch.ones(()) for n in range(12)}
    with pytest.raises(ConfigError, match=r"layers_\*_mlp_fc1\.alpha \(12\)") as caught:
        detect(weights | of_state(odd), "it")
    assert "take the text encoder's part out first" in caught.value.fix


def test_other_models_lora_is_refused() -> None:
    keys = ["unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "lora_unet_down_blocks_0_attentions_0.alpha"]
    with pytest.raises(ConfigError, match=r"is no LoRA of a FLUX\.1 transformer: 2 unknown keys"):
        detect(keys, "it")


def test_half_a_layer_is_an_error() -> None:
    weights = peft_state(whole_lora(), "transformer.")
    del weights["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"]
    with pytest.raises(ConfigError, match=r"1 missing key: transformer_blocks\.0\.attn\.to_q \(up\)"):
        _read(weights)


def test_a_layer_that_is_there_twice_is_an_error() -> None:
    own = delta((8, 8), 2, 2.0)
    name = "double_blocks.0.img_attn.proj"
    tensors = {f"{name}.lora_{part}.weight": own.down.read() for part in ("A", "down")}
    tensors |= {f"{name}.lora_B.weight": own.up.read()}
    with pytest.raises(DataError, match="twice"):
        _read(of_state(tensors))


def test_factors_that_do_not_fit_are_an_error() -> None:
    tensors = {
        "transformer.x_embedder.lora_A.weight": torch.ones(4, 16),
        "transformer.x_embedder.lora_B.weight": torch.ones(32, 3),
    }
    with pytest.raises(DataError, match=r"factors of \(4, 16\) and \(32, 3\)"):
        _read(of_state(tensors))
