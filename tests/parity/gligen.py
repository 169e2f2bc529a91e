"""Runs our GLIGEN modules on the golden cases of ``gligen/``.

Each function takes a case and returns what our code computes, by the names of the case's outputs; the runner
compares all of them.
"""

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from atelier.models.fourier import fourier_embedding
from atelier.models.gligen import GatedSelfAttention, PositionNet
from atelier.models.grounded_unet import adapter_parameters, attach, freeze_base
from tests.parity.case import Case


def fuser(case: Case) -> dict[str, Tensor]:
    """The gated self-attention: output, states on the way, gradients of every weight and input."""
    config = case.spec["config"]
    layer = GatedSelfAttention(config["query_dim"], config["context_dim"], config["n_heads"], config["d_head"])
    layer.load_state_dict(case.weights)
    x, objs = (case.inputs[name].clone().requires_grad_() for name in ("x", "objs"))
    y = layer(x, objs)
    (y * case.inputs["cotangent"]).sum().backward()
    result = {
        "y": y,
        "objs_projected": layer.linear(objs),
        "after_attn": layer.attend(x, objs),
        "grad.x": x.grad,
        "grad.objs": objs.grad,
    }
    result |= {f"grad.w.{name}": parameter.grad for name, parameter in layer.named_parameters()}
    layer.enabled = False
    if not torch.equal(layer(x, objs), x):
        raise AssertionError("a disabled fuser changes its input")
    layer.enabled = True
    with torch.no_grad():
        layer.alpha_attn.zero_(), layer.alpha_dense.zero_()
    if not torch.equal(layer(x, objs), x):
        raise AssertionError("a fuser with shut gates changes its input")
    return {name: tensor for name, tensor in result.items() if tensor is not None}


def _position_net(case: Case) -> PositionNet:
    config = case.spec["config"]
    hidden = case.weights["linears.0.bias"].shape[0]
    net = PositionNet(config["positive_len"], config["out_dim"], config["fourier_freqs"], hidden)
    net.load_state_dict(case.weights)
    return net


def position_net(case: Case) -> dict[str, Tensor]:
    """Grounding tokens, the null token and the Fourier features."""
    net, given = _position_net(case), case.inputs
    null = net(given["boxes"][:1, :1], given["masks"][:1, :1] * 0, given["positive_embeddings"][:1, :1])
    return {
        "objs": net(given["boxes"], given["masks"], given["positive_embeddings"]),
        "null_objs": null[0, 0],
        "fourier": fourier_embedding(given["boxes"], net.frequencies),
    }


def fourier(case: Case) -> dict[str, Tensor]:
    """``emb<F>`` for every number of frequencies F that the case has."""
    return {name: fourier_embedding(case.inputs["boxes"], int(name.removeprefix("emb"))) for name in case.outputs}


def unet(case: Case) -> dict[str, Tensor]:
    """A whole stock UNet with our layers attached: outputs, loss, gradients of the trained part."""
    config = {name: value for name, value in case.spec["config"].items() if name != "attention_type"}
    hidden = case.weights["position_net.linears.0.bias"].shape[0]
    model = attach(UNet2DConditionModel(**config), hidden=hidden)
    model.load_state_dict(case.weights)
    freeze_base(model)
    given = case.inputs
    conditions = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
    grounding = {name: given[name] for name in ("boxes", "masks", "positive_embeddings")}

    def call(gligen: dict[str, Tensor] | None) -> Tensor:
        output: Tensor = model(
            given["sample"],
            given["timestep"],
            given["encoder_hidden_states"],
            added_cond_kwargs=conditions or None,
            cross_attention_kwargs={"gligen": gligen} if gligen else None,
        ).sample
        return output

    y = call(grounding)
    loss = nn.functional.mse_loss(y, given["noise_target"])
    loss.backward()
    grads = {name: p.grad for name, p in adapter_parameters(model).items() if p.grad is not None}
    objs = model.position_net(**grounding)
    result = {
        "y": y,
        "y_no_gligen_kwargs": call(None),
        "objs": objs,
        "loss": loss,
        "grad_norm": torch.stack([grad.norm() for grad in grads.values()]).norm(),
    }
    if not torch.equal(call({"objs": objs}), y):
        raise AssertionError("grounding tokens computed before give another output")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trained != case.spec["n_trainable"]:
        raise AssertionError(f"{trained} trainable parameters, expected {case.spec['n_trainable']}")
    return result | {f"grad.{name}": grad for name, grad in grads.items()}


KINDS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "fuser": fuser,
    "position_net": position_net,
    "position_net512": position_net,
    "fourier": fourier,
    "unet_sdxl": unet,
    "unet_sd1": unet,
}
