"""Fusing, splitting and folding change no ΔW."""

import pytest
import torch

from atelier.convert.lora import Delta, folded, fuse, halves_swapped, split
from atelier.convert.weights import of_state
from atelier.errors import DataError
from tests.convert.lora_files import delta

OUTS = (8, 8, 8, 32)


def test_a_fused_layer_is_its_members_in_a_row() -> None:
    members = [delta((out, 8), 2, 3.0, seed) for seed, out in enumerate(OUTS)]
    fused = fuse(members, OUTS)
    assert (fused.shape, fused.rank, fused.alpha) == ((56, 8), 8, 12.0)
    assert torch.equal(fused.dense(), torch.cat([member.dense() for member in members]))
    back = split(fused, OUTS, "it")
    for own, member in zip(back, members, strict=True):
        assert own is not None
        assert own.alpha == 3
        assert torch.equal(own.down.tensor(), member.down.tensor())
        assert torch.equal(own.up.tensor(), member.up.tensor())


def test_a_missing_member_is_missing_again() -> None:
    members = [delta((8, 8), 2, 3.0), None, delta((8, 8), 2, 3.0, 2), None]
    fused = fuse(members, OUTS)
    assert not fused.dense()[8:16].any()
    back = split(fused, OUTS, "it")
    assert [member is None for member in back] == [False, True, False, True]


def test_a_member_that_has_not_learned_yet_is_there() -> None:
    """B is zero at the start of a training; A is not."""
    fresh = delta((8, 8), 2, 3.0, 1)
    fresh = Delta(fresh.down, of_state({"up": torch.zeros(8, 2)})["up"], 3.0)
    back = split(fuse([delta((8, 8), 2, 3.0), fresh, None, None], OUTS), OUTS, "it")
    assert [member is None for member in back] == [False, False, True, True]
    assert back[1] is not None
    assert torch.equal(back[1].down.tensor(), fresh.down.tensor())


def test_members_of_other_ranks_and_scales() -> None:
    members = [delta((8, 8), 2, 1.0), delta((8, 8), 4, 8.0, 1), delta((8, 8), 1, 4.0, 2), None]
    fused = fuse(members, OUTS)
    wanted = torch.cat([m.dense() for m in members if m is not None] + [torch.zeros(32, 8)])
    assert torch.equal(fused.dense(), wanted)
    back = split(fused, OUTS, "it")
    assert torch.equal(torch.cat([m.dense() for m in back if m is not None]), wanted[:24])


@pytest.mark.parametrize("rank", [3, 4])
def test_factors_that_members_share(rank: int) -> None:
    """A layer that was trained fused: no blocks, whatever its rank divides by."""
    fused = delta((56, 8), rank, 2.0)
    back = split(fused, OUTS, "it")
    assert torch.equal(torch.cat([member.dense() for member in back if member is not None]), fused.dense())
    assert {member.rank for member in back if member is not None} == {rank}


def test_another_number_of_outputs_is_an_error() -> None:
    with pytest.raises(DataError, match=r"linear1 has 55 outputs, its parts 8 \+ 8 \+ 8 \+ 32"):
        split(delta((55, 8), 4, 2.0), OUTS, "linear1")


@pytest.mark.parametrize("into", ["down", "up"])
@pytest.mark.parametrize("alpha", [8.0, 4.0, 1.0, 0.25])
def test_folding_keeps_the_change(into: str, alpha: float) -> None:
    before = delta((8, 8), 4, alpha)
    after = folded(before, into)  # type: ignore[arg-type]
    assert after.scale == 1
    assert torch.equal(after.dense(), before.dense())


def test_folding_a_small_scale_keeps_half_precision() -> None:
    tensors = of_state({"down": torch.full((4, 8), 1e-3).half(), "up": torch.full((8, 4), 1e-3).half()})
    before = Delta(tensors["down"], tensors["up"], 4 * 2.0**-14)
    after = folded(before, "down")
    assert after.down.tensor().dtype == torch.float16
    torch.testing.assert_close(after.dense(), before.dense(), rtol=1e-2, atol=0)


def test_swapped_halves() -> None:
    before = delta((8, 4), 2, 2.0)
    assert torch.equal(halves_swapped(before).dense(), torch.cat([before.dense()[4:], before.dense()[:4]]))
