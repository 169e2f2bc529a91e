"""The formats of FLUX LoRA files: which one a file is, told by its keys, and what each key means."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from atelier.convert.lora_names import Place, of_bfl, of_diffusers, of_kohya, of_xlabs
from atelier.errors import ConfigError
from atelier.models.keys import listed

DOWN, UP, ALPHA = "down", "up", "alpha"
PEFT_PREFIX = "base_model.model."
"""What ``PeftModel`` puts before its model's names: its alpha is in a file beside."""


@dataclass(frozen=True)
class Form:
    """A format.

    Attributes:
        title: for a person.
        pattern: of its keys, with groups ``layer`` and ``part``.
        place: what a layer's name means; None: FLUX has no such layer.
        example: a key.
    """

    title: str
    pattern: re.Pattern[str]
    place: Callable[[str], tuple[Place, str] | None]
    example: str


_PARTS = r"(?P<part>lora_[AB](?:\.default)?\.weight|alpha)"
_EITHER = r"(?P<part>lora_A\.weight|lora_B\.weight|lora_down\.weight|lora_up\.weight|alpha)"
_MEANING = {"lora_A": DOWN, "lora_B": UP, "lora_down": DOWN, "lora_up": UP, "down": DOWN, "up": UP, "alpha": ALPHA}
_BFL = r"(?P<layer>(?:double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)\b.*?)"

FORMS = {
    "diffusers": Form(
        "diffusers (or ai-toolkit, whose keys are the same)",
        re.compile(rf"transformer\.(?P<layer>.+?)\.{_PARTS}"),
        of_diffusers,
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
    ),
    "kohya": Form(
        "kohya's sd-scripts",
        re.compile(r"lora_unet_(?P<layer>.+?)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)"),
        of_kohya,
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    ),
    "xlabs": Form(
        "xlabs",
        re.compile(
            r"(?:diffusion_model\.)?(?P<layer>(?:double|single)_blocks\.\d+\.processor\.\w+)\.(?P<part>(?:down|up)\.weight)"
        ),
        of_xlabs,
        "double_blocks.0.processor.qkv_lora1.down.weight",
    ),
    "bfl": Form(
        "BFL's own names",
        re.compile(rf"(?:diffusion_model\.|base_model\.model\.)?{_BFL}\.{_EITHER}"),
        of_bfl,
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
    ),
    "peft": Form(
        "a peft adapter",
        re.compile(rf"base_model\.model\.(?P<layer>.+?)\.{_PARTS}"),
        of_diffusers,
        "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",
    ),
    "peft-state": Form(
        "a peft state dict",
        re.compile(rf"(?P<layer>.+?)\.{_PARTS}"),
        of_diffusers,
        "transformer_blocks.0.attn.to_q.lora_A.weight",
    ),
}
"""In the order in which they are tried: the more special first."""


class Key(NamedTuple):
    """What a key means: a part (``down``, ``up``, ``alpha``) of a layer by the format's name, at a place of a block."""

    layer: str
    part: str
    place: Place
    block: str


def parse(form: Form, key: str) -> Key | None:
    """What a key means in a format; None: nothing."""
    match = form.pattern.fullmatch(key)
    found = form.place(match["layer"]) if match else None
    if not match or found is None:
        return None
    return Key(match["layer"], _MEANING[match["part"].partition(".")[0]], *found)


def detect(keys: Iterable[str], what: str) -> tuple[str, dict[str, Key]]:
    """Which format these keys are of, and what each means.

    Raises:
        ConfigError: no format explains any of them, or the one that explains most leaves some: all of those are listed.
    """
    every = sorted(keys)
    best, meanings = "", dict[str, Key]()
    for name, form in FORMS.items():
        found = {key: meaning for key in every if (meaning := parse(form, key)) is not None}
        if len(found) > len(meanings):
            best, meanings = name, found
    strange = [key for key in every if key not in meanings]
    if not meanings:
        raise ConfigError(
            f"{what} is no LoRA of a FLUX.1 transformer: {listed('unknown', strange)}",
            "give one with keys like " + ", ".join(form.example for form in FORMS.values()),
        )
    if strange:
        text = any(key.startswith(("lora_te", "text_encoder")) for key in strange)
        raise ConfigError(
            f"{what} reads as {FORMS[best].title} but for {listed('unknown', strange)}",
            "take the text encoder's part out first: only the transformer's is converted"
            if text
            else "convert plain LoRA of the transformer's linear layers alone",
        )
    return best, meanings


def require_pairs(meanings: Mapping[str, Key], what: str) -> None:
    """Every layer has both its factors.

    Raises:
        ConfigError: some lack one; they are listed.
    """
    parts: dict[str, set[str]] = {}
    for key in meanings.values():
        parts.setdefault(key.layer, set()).add(key.part)
    lacking = [f"{layer} ({part})" for layer, own in sorted(parts.items()) for part in (DOWN, UP) if part not in own]
    if lacking:
        raise ConfigError(f"{what}: {listed('missing', lacking)}", "copy or download it again: a layer is half there")
