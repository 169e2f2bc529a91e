"""What the networks promise beyond their numbers: no state, no padding keys, errors that say what is wrong."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from atelier.errors import ConfigError
from atelier.models.crossflow.configs import CrossFlowConfig
from atelier.models.crossflow.dimr import Stage
from tests.models.crossflow.tiny import DIMR, DIT, made, stage


@pytest.fixture(params=[DIT, DIMR], ids=["dit", "dimr"])
def config(request: pytest.FixtureRequest) -> CrossFlowConfig:
    found: CrossFlowConfig = request.param
    return found


def _inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 4, 8, 8), torch.rand(batch), torch.arange(batch) % 2 == 1


def test_samples_do_not_see_each_other(config: CrossFlowConfig) -> None:
    flow, (x, t, null) = made(config).flow, _inputs()
    with torch.no_grad():
        together = flow(x, t, null)
        for row in range(len(x)):
            alone = flow(x[row : row + 1], t[row : row + 1], null[row : row + 1])
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a[0], b[row], atol=1e-5, rtol=1e-5)


def test_one_time_for_all_is_that_time_for_each(config: CrossFlowConfig) -> None:
    flow, (x, _, null) = made(config).flow, _inputs()
    with torch.no_grad():
        for one, each in zip(flow(x, torch.tensor([0.3]), null), flow(x, torch.full((3,), 0.3), null), strict=True):
            torch.testing.assert_close(one, each, atol=1e-6, rtol=1e-6)


def test_threads_may_share_a_network(config: CrossFlowConfig) -> None:
    """Each thread at another time: a time that was written into the modules would be another thread's."""
    flow, (x, _, null) = made(config).flow, _inputs()
    times = [torch.full((3,), n / 16) for n in range(16)]

    def call(t: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            velocity: torch.Tensor = flow(x, t, null)[-1]
            return velocity

    expected = [call(t) for t in times]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(call, times), expected, strict=True):
            assert torch.equal(found, wanted)


def test_a_graph_without_a_break(config: CrossFlowConfig) -> None:
    """The whole forward pass is one graph for torch.compile, and gives the same numbers at another time too."""
    flow, (x, t, null) = made(config).flow, _inputs()
    compiled = torch.compile(flow, backend="eager", fullgraph=True)
    with torch.no_grad():
        for times in (t, t.flip(0)):
            for a, b in zip(compiled(x, times, null), flow(x, times, null), strict=True):
                torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_checkpointing_changes_no_gradient(config: CrossFlowConfig) -> None:
    model, (x, t, null) = made(config), _inputs()
    grads = []
    for on in (False, True):
        for part in getattr(model.flow, "stages", [model.flow]):
            part.gradient_checkpointing = on
        model.zero_grad()
        sum(v.square().sum() for v in model.flow(x, t, null)).backward()
        grads.append({n: p.grad.clone() for n, p in model.flow.named_parameters() if p.grad is not None})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_the_indicator_and_the_time_matter(config: CrossFlowConfig) -> None:
    flow, (x, t, null) = made(config).flow, _inputs()
    with torch.no_grad():
        velocity = flow(x, t, null)[-1]
        assert not torch.allclose(velocity, flow(x, t, ~null)[-1], atol=1e-4)
        assert not torch.allclose(velocity, flow(x, 1 - t, null)[-1], atol=1e-4)


def test_another_resolution_is_refused(config: CrossFlowConfig) -> None:
    with pytest.raises(ConfigError, match=r"latents \(4, 8, 8\), not \(4, 16, 16\)"):
        made(config).flow(torch.zeros(1, 4, 16, 16), torch.zeros(1))


def test_half_precision_keeps_the_time_exact(config: CrossFlowConfig) -> None:
    """Times that bf16 cannot tell apart still give other velocities' time constants; the output stays near fp32's."""
    model, (x, t, null) = made(config), _inputs()
    with torch.no_grad():
        wanted = model.flow(x, t, null)[-1]
        found = model.flow.to(torch.bfloat16)(x.to(torch.bfloat16), t, null)[-1]
    assert found.dtype == torch.bfloat16
    assert float((found.float() - wanted).norm() / wanted.norm()) < 0.05


def test_padding_is_no_key() -> None:
    """What stands in padded places changes those places' own rows alone."""
    encoder = made(DIMR).context_encoder
    torch.manual_seed(2)
    text, mask = torch.randn(2, 6, 32), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    other = text.clone()
    other[0, 3:] = 100.0
    with torch.no_grad():
        whole, _ = encoder.hidden_states(text, mask)
        changed, _ = encoder.hidden_states(other, mask)
    torch.testing.assert_close(whole[0, :3], changed[0, :3])
    torch.testing.assert_close(whole[1], changed[1])
    assert not torch.allclose(whole[0, 3:], changed[0, 3:])


def test_a_text_without_tokens_is_finite() -> None:
    encoder = made(DIT).context_encoder
    posterior = encoder(torch.randn(1, 6, 32), torch.zeros(1, 6))
    assert posterior.mean.isfinite().all()
    assert posterior.log_var.isfinite().all()


def test_layers_start_apart() -> None:
    """Upstream's layers are copies of one; ours each have a start of their own."""
    first, second = (
        made(CrossFlowConfig("dit", DIT.flow, {**DIT.text, "num_layers": 2}, DIT.latent_shape, None))
        .eval()
        .context_encoder.layers
    )
    assert not torch.equal(first.attn.W_Q.weight, second.attn.W_Q.weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"block_type": "Mamba"}, "no blocks of type 'Mamba'"), ({"dropout_prob": 0.1}, "no dropout")],
)
def test_a_stage_that_was_never_published_is_refused(fields: dict[str, object], message: str) -> None:
    given = stage("TransformerBlock", dim=8, hidden_dim=8, max_height=4, max_width=4, input_feature_ratio=1)
    with pytest.raises(ConfigError, match=message):
        Stage(**{**given, **fields})
