"""Which of diffusers' FLUX layers are which of BFL's, whose names kohya's files and others use."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A layer of BFL's FLUX and what diffusers calls it.

    Attributes:
        bfl: its name, ``*`` for a block's number.
        diffusers: one layer, or the several that it fuses, in order.
        outs: of several, their outputs in units of the layer's inputs.
        swapped: its halves are the other way round.
    """

    bfl: str
    diffusers: tuple[str, ...]
    outs: tuple[int, ...] = ()
    swapped: bool = False


def _stream(bfl: str, attention: tuple[str, str, str, str], feed: str, norm: str) -> list[Place]:
    """One of a double block's two streams."""
    outer, inner = "double_blocks.*.", "transformer_blocks.*."
    query, key, value, out = (f"{inner}attn.{name}" for name in attention)
    return [
        Place(f"{outer}{bfl}_attn.qkv", (query, key, value), (1, 1, 1)),
        Place(f"{outer}{bfl}_attn.proj", (out,)),
        Place(f"{outer}{bfl}_mlp.0", (f"{inner}{feed}.net.0.proj",)),
        Place(f"{outer}{bfl}_mlp.2", (f"{inner}{feed}.net.2",)),
        Place(f"{outer}{bfl}_mod.lin", (f"{inner}{norm}.linear",)),
    ]


_SINGLE = tuple(f"single_transformer_blocks.*.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
PLACES = (
    *_stream("img", ("to_q", "to_k", "to_v", "to_out.0"), "ff", "norm1"),
    *_stream("txt", ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"), "ff_context", "norm1_context"),
    Place("single_blocks.*.linear1", _SINGLE, (1, 1, 1, 4)),
    Place("single_blocks.*.linear2", ("single_transformer_blocks.*.proj_out",)),
    Place("single_blocks.*.modulation.lin", ("single_transformer_blocks.*.norm.linear",)),
    Place("img_in", ("x_embedder",)),
    Place("txt_in", ("context_embedder",)),
    *(
        Place(f"{bfl}_in.{side}_layer", (f"time_text_embed.{name}_embedder.linear_{number}",))
        for bfl, name in (("time", "timestep"), ("guidance", "guidance"), ("vector", "text"))
        for number, side in ((1, "in"), (2, "out"))
    ),
    Place("final_layer.linear", ("proj_out",)),
    Place("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
)
XLABS = {
    "double_blocks.*.processor.qkv_lora1": Place("", PLACES[0].diffusers, (1, 1, 1)),
    "double_blocks.*.processor.qkv_lora2": Place("", PLACES[5].diffusers, (1, 1, 1)),
    "double_blocks.*.processor.proj_lora1": Place("", PLACES[1].diffusers),
    "double_blocks.*.processor.proj_lora2": Place("", PLACES[6].diffusers),
    "single_blocks.*.processor.qkv_lora": Place("", _SINGLE[:3], (1, 1, 1)),
    "single_blocks.*.processor.proj_lora": Place("", ("single_transformer_blocks.*.proj_out",)),
}
"""xlabs' names (1: the image's stream, 2: the text's), as diffusers reads them."""
_BY_BFL = {place.bfl: place for place in PLACES}
_BY_KOHYA = {place.bfl.replace(".", "_"): place for place in PLACES}
_BY_DIFFUSERS = {name: place for place in PLACES for name in place.diffusers}
_BLOCK = re.compile(r"(?<=blocks[._])\d+(?=[._])")


def of_bfl(name: str) -> tuple[Place, str] | None:
    """The place of ``double_blocks.3.img_attn.qkv``, and its block's number ("" outside of blocks)."""
    return _found(_BY_BFL, name)


def of_kohya(name: str) -> tuple[Place, str] | None:
    """The place of ``double_blocks_3_img_attn_qkv``, and its block's number."""
    return _found(_BY_KOHYA, name)


def of_xlabs(name: str) -> tuple[Place, str] | None:
    """The place of ``double_blocks.3.processor.qkv_lora1``, and its block's number."""
    return _found(XLABS, name)


def of_diffusers(name: str) -> tuple[Place, str] | None:
    """The place that ``transformer_blocks.3.attn.to_q`` lies in, and its block's number; None: no layer of FLUX."""
    return _found(_BY_DIFFUSERS, name)


def numbered(pattern: str, block: str) -> str:
    """A name with a block's number in place of ``*``."""
    return pattern.replace("*", block)


def kohya_name(place: Place, block: str) -> str:
    """``double_blocks_3_img_attn_qkv``."""
    return numbered(place.bfl, block).replace(".", "_")


def _found(places: dict[str, Place], name: str) -> tuple[Place, str] | None:
    number = _BLOCK.search(name)
    place = places.get(_BLOCK.sub("*", name, count=1))
    return None if place is None else (place, number[0] if number else "")
