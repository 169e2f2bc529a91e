"""The fusers beside the published formula written out region by region, and what must not leak between regions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.models.regional.batches import collate
from atelier.models.regional.fusers import (
    InstDiffSelfAttention,
    RegionalCrossAndSelfAttention,
    RegionalCrossAttention,
)
from atelier.models.regional.grounding import Grounding
from atelier.models.regional.position_net import RegionTextNet
from tests.models.regional.layouts import WIDTH, batch, plain_attention, random_layout, randomise

DIM, CONTEXT = 12, 10
CLASSES = (RegionalCrossAttention, RegionalCrossAndSelfAttention, InstDiffSelfAttention)


def grounding(height: int, width: int, *, pooled: bool = False) -> Grounding:
    layouts = [random_layout(4, height, width), None, random_layout(3, height, width, seed=1)]
    given = batch(collate(layouts, height, width, WIDTH, with_unions=True))
    if pooled:
        regions = given["unions"].shape[1]
        number = torch.arange(regions).expand(3, regions).clone()
        number[1] = -1
        number[2][number[2] > given["cells"][2].max()] = -1
        given |= {"text": given["text"][:, :regions], "region": number}
        given |= {"bias": torch.zeros(3, regions), "boxes": torch.zeros(3, regions, 4)}
    net = RegionTextNet(WIDTH, CONTEXT, hidden=16, keep_small=False)
    randomise(net)
    with torch.no_grad():
        return net(**given)


def visual(length: int) -> Tensor:
    return torch.randn(3, length, DIM, generator=torch.Generator().manual_seed(7))


def regions_at(given: Grounding, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(region of each visual token [B, L], unions [B, R, L])."""
    assert given.unions is not None
    own = F.interpolate(given.cells[:, None].float(), size).flatten(1).long()
    return own, F.interpolate(given.unions.float(), size).flatten(2).bool()


def plain_ca(layer: RegionalCrossAttention, x: Tensor, given: Grounding, size: tuple[int, int]) -> Tensor:
    """Region by region, with that region's tokens alone."""
    own, _ = regions_at(given, size)
    made = x.clone()
    for row in range(len(x)):
        for query in range(x.shape[1]):
            tokens = given.tokens[row][(given.region[row] == own[row, query]) & (given.region[row] >= 0)]
            bias = given.bias[row][(given.region[row] == own[row, query]) & (given.region[row] >= 0)]
            if not len(tokens):
                made[row, query] += layer.null_text_feat
                continue
            attn, heads = layer.attn, layer.attn.heads
            q = attn.to_q(x[row, query]).unflatten(-1, (heads, 1, -1))
            k, v = (part(tokens).unflatten(-1, (heads, -1)).transpose(0, 1) for part in (attn.to_k, attn.to_v))
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
            made[row, query] += attn.to_out[0]((weights @ v).flatten())
    return made


def plain_casa(layer: RegionalCrossAndSelfAttention, x: Tensor, given: Grounding, size: tuple[int, int]) -> Tensor:
    y = plain_ca(layer, x, given, size)
    own, unions = regions_at(given, size)
    made = y.clone()
    for row in range(len(x)):
        for region in own[row].unique().tolist():
            if region >= 0:
                read = plain_attention(layer.self_attn, y[row], y[row][unions[row, region]])
                made[row] += (own[row] == region)[:, None] * read
    return made


def plain_instdiff(layer: InstDiffSelfAttention, x: Tensor, given: Grounding, size: tuple[int, int]) -> Tensor:
    own, unions = regions_at(given, size)
    made, text = x.clone(), layer.text_linear(given.tokens)
    for row in range(len(x)):
        for region in own[row].unique().tolist():
            if region >= 0:
                others = torch.cat((x[row][unions[row, region]], text[row][given.region[row] == region]))
                made[row] += (own[row] == region)[:, None] * plain_attention(layer.self_attn, x[row], others)
    return made


@torch.no_grad()
@pytest.mark.parametrize(
    ("height", "width", "size"), [(8, 8, (8, 8)), (8, 8, (4, 4)), (12, 20, (6, 10)), (6, 10, (3, 5))]
)
@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (RegionalCrossAttention, plain_ca),
        (RegionalCrossAndSelfAttention, plain_casa),
        (InstDiffSelfAttention, plain_instdiff),
    ],
)
def test_the_published_formula(
    kind: type[nn.Module], plain: Callable[..., Tensor], height: int, width: int, size: tuple[int, int]
) -> None:
    layer = kind(DIM, CONTEXT, 2, 6)
    randomise(layer)
    given = grounding(height, width, pooled=kind is InstDiffSelfAttention)
    x = visual(size[0] * size[1])
    torch.testing.assert_close(layer(x, given), plain(layer, x, given, size), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", CLASSES)
def test_a_fresh_fuser_is_the_identity(kind: type[nn.Module]) -> None:
    x, given = visual(64), grounding(8, 8, pooled=kind is InstDiffSelfAttention)
    assert torch.equal(kind(DIM, CONTEXT, 2, 6)(x, given), x)


@torch.no_grad()
@pytest.mark.parametrize("kind", CLASSES)
def test_a_sample_that_is_not_grounded_passes_as_it_is(kind: type[nn.Module]) -> None:
    """One with regions and one without; the third is what it was."""
    layer = kind(DIM, CONTEXT, 2, 6)
    randomise(layer)
    given, x = grounding(8, 8, pooled=kind is InstDiffSelfAttention), visual(64)
    made = layer(x, given)
    some = given._replace(grounded=torch.tensor([False, False, True]), masks={})
    assert not torch.equal(made[0], x[0])
    assert torch.equal(layer(x, some)[:2], x[:2])
    assert torch.equal(layer(x, some)[2], made[2])
    assert torch.equal(layer(x, given._replace(grounded=torch.ones(3, dtype=torch.bool))), made)
    moved = some.to(torch.device("meta"))
    assert moved.grounded is not None
    assert moved.grounded.is_meta


def test_a_token_moves_its_own_regions_cells_alone() -> None:
    layer = RegionalCrossAttention(DIM, CONTEXT, 2, 6)
    randomise(layer)
    given, x = grounding(8, 8), visual(64)
    with torch.no_grad():
        before = layer(x, given)
        for region in range(int(given.cells[0].max()) + 1):
            moved = given.tokens.clone()
            moved[0, given.region[0] == region] += 1
            changed = (layer(x, given._replace(tokens=moved)) - before).abs().amax(-1) > 1e-6
            assert torch.equal(changed[0], given.cells[0].flatten() == region)
            assert not changed[1:].any()


@pytest.mark.parametrize("kind", CLASSES)
def test_gradients_are_finite_where_nothing_is_seen(kind: type[nn.Module]) -> None:
    layer = kind(DIM, CONTEXT, 2, 6)
    randomise(layer)
    given = grounding(8, 8, pooled=kind is InstDiffSelfAttention)
    tokens, x = given.tokens.requires_grad_(), visual(16).requires_grad_()
    layer(x, given._replace(tokens=tokens)).square().sum().backward()
    assert x.grad is not None
    assert tokens.grad is not None
    assert x.grad.isfinite().all()
    assert tokens.grad.isfinite().all()
    assert (tokens.grad[1] == 0).all()
    assert (tokens.grad[given.region < 0] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", CLASSES)
def test_bfloat16(kind: type[nn.Module]) -> None:
    layer = kind(DIM, CONTEXT, 2, 6)
    randomise(layer)
    given, x = grounding(8, 8, pooled=kind is InstDiffSelfAttention), visual(64)
    exact = layer(x, given)
    half = layer.bfloat16()(x.bfloat16(), given._replace(tokens=given.tokens.bfloat16(), masks={}))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.15, rtol=0.1)
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x, given._replace(masks={}))
    torch.testing.assert_close(mixed.float(), exact, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("kind", CLASSES)
def test_one_graph(kind: type[nn.Module]) -> None:
    """torch.compile traces net and fusers whole, the masks' keeping included."""
    layers = nn.ModuleList([kind(DIM, CONTEXT, 2, 6) for _ in range(2)])
    randomise(layers)
    net = RegionTextNet(WIDTH, CONTEXT, hidden=16)
    arguments = batch(collate([random_layout(4), None], 8, 8, WIDTH, with_unions=True))
    x = visual(16)[:2]

    def run(x: Tensor, arguments: dict[str, Tensor]) -> Tensor:
        objs = net(**arguments)
        for layer in layers:
            x = layer(x, objs)
        return x

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, arguments), run(x, arguments), atol=1e-5, rtol=1e-5)


def test_a_length_that_is_no_level_is_named() -> None:
    with pytest.raises(ValueError, match="60 visual tokens are no level of a 8×8 map"):
        RegionalCrossAttention(DIM, CONTEXT, 2, 6)(visual(60), grounding(8, 8))
