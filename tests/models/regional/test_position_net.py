"""Region tokens from text states and boxes."""

import pytest
import torch

from atelier.models.regional.batches import collate
from atelier.models.regional.position_net import RegionTextNet
from tests.models.regional.layouts import WIDTH, batch, random_layout, randomise


def test_names_and_shapes_of_the_released_net() -> None:
    with torch.device("meta"):
        net = RegionTextNet(2048, 2048)
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {
        "null_text_feature": (2112,),
        "linears.0.weight": (512, 2112),
        "linears.0.bias": (512,),
        "linears.2.weight": (512, 512),
        "linears.2.bias": (512,),
        "linears.4.weight": (2048, 512),
        "linears.4.bias": (2048,),
    }


def test_padding_is_the_null_feature_whatever_it_holds_and_takes_no_gradient() -> None:
    net = RegionTextNet(WIDTH, 5, hidden=7)
    randomise(net)
    given = batch(collate([random_layout(3), random_layout(1)], 8, 8, WIDTH))
    first = net(**given)
    padding = given["region"] < 0
    assert padding[1].any()
    torch.testing.assert_close(first.tokens[padding], net.linears(net.null_text_feature).expand(int(padding.sum()), -1))
    second = net(**given | {"text": torch.where(padding[..., None], 9.0, given["text"])})
    assert torch.equal(first.tokens, second.tokens)
    first.tokens[~padding].sum().backward()
    assert net.null_text_feature.grad is not None
    assert (net.null_text_feature.grad == 0).all()


def test_boxes_move_the_tokens_of_the_net_that_reads_them() -> None:
    given = batch(collate([random_layout(3)], 8, 8, WIDTH))
    moved = given | {"boxes": given["boxes"] + 0.1}
    for boxed in (True, False):
        net = RegionTextNet(WIDTH, 5, hidden=7, boxed=boxed)
        randomise(net)
        assert torch.equal(net(**given).tokens, net(**moved).tokens) != boxed


def test_objs_come_back_and_something_must_be_given() -> None:
    net = RegionTextNet(WIDTH, 5, hidden=7)
    objs = net(**batch(collate([random_layout(3)], 8, 8, WIDTH)))
    assert net(objs=objs) is objs
    with pytest.raises(ValueError, match="objs made before"):
        net(text=objs.tokens)


def test_each_call_has_masks_of_its_own() -> None:
    net = RegionTextNet(WIDTH, 5, hidden=7)
    given = batch(collate([random_layout(3)], 8, 8, WIDTH))
    first, second = net(**given), net(**given)
    first.token_mask(64)
    assert second.masks == {}
    assert first.keep_small
    net.keep_small = False
    assert not net(**given).keep_small
