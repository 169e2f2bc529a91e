"""The grounded SD pipeline: against the stock one, diffusers' own GLIGEN pipeline, and loops written out by hand."""

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import PipelineCallback

from atelier.errors import ConfigError
from atelier.models.gligen import GatedSelfAttention
from atelier.models.grounded_unet import is_adapter_key
from atelier.sampling.gligen_sd import StableDiffusionGLIGENPipeline
from tests.sampling.tiny_sd import BOX, make_pipeline, make_scheduler, make_unet, write

GROUNDED: dict[str, Any] = {"gligen_boxes": [BOX], "gligen_phrases": ["a one"], "gligen_scheduled_sampling_beta": 0.4}


@pytest.fixture(scope="module")
def shared() -> StableDiffusionGLIGENPipeline:
    return make_pipeline()


@pytest.fixture
def pipeline(shared: StableDiffusionGLIGENPipeline) -> Iterator[StableDiffusionGLIGENPipeline]:
    """The shared pipeline; whatever a test does, it must be left as it was found."""
    state = {name: tensor.clone() for name, tensor in shared.unet.state_dict().items()}
    scheduler = vars(shared.scheduler).copy()
    own = vars(shared).copy()
    yield shared
    assert all(torch.equal(tensor, state[name]) for name, tensor in shared.unet.state_dict().items())
    assert all(module.enabled for module in shared.unet.modules() if isinstance(module, GatedSelfAttention))
    assert vars(shared) == own
    assert vars(shared.scheduler).keys() == scheduler.keys()
    assert shared.scheduler.num_inference_steps is None


def sample(pipe: Any, prompt: Any = "a seven", **more: Any) -> torch.Tensor:
    count = (1 if isinstance(prompt, str) or prompt is None else len(prompt)) * more.get("num_images_per_prompt", 1)
    settings = {
        "num_inference_steps": 5,
        "height": 64,
        "width": 64,
        "guidance_scale": 4.0,
        "output_type": "latent",
        "generator": [torch.Generator().manual_seed(i) for i in range(count)],
    }
    return pipe(prompt, **(settings | more)).images


def test_without_boxes_it_is_the_stock_pipeline(pipeline: StableDiffusionGLIGENPipeline) -> None:
    stock = StableDiffusionPipeline(
        **{**pipeline.components, "scheduler": make_scheduler()}, requires_safety_checker=False
    )
    stock.set_progress_bar_config(disable=True)
    expected = sample(stock)
    assert torch.equal(sample(pipeline), expected)
    assert torch.equal(sample(pipeline, gligen_boxes=[], gligen_phrases=[]), expected)
    assert torch.equal(sample(pipeline, **GROUNDED | {"gligen_scheduled_sampling_beta": 0.0}), expected)


@pytest.mark.parametrize("beta", [0.4, 1.0])
@pytest.mark.parametrize(
    "scheduler", [make_scheduler, lambda: EulerDiscreteScheduler.from_config(make_scheduler().config)]
)
def test_it_samples_what_diffusers_own_gligen_pipeline_samples(
    pipeline: StableDiffusionGLIGENPipeline, beta: float, scheduler: Any
) -> None:
    """Two prompts, two pictures each, shared boxes: to rounding."""
    from diffusers import StableDiffusionGLIGENPipeline as Theirs

    unet = UNet2DConditionModel(**{name: value for name, value in pipeline.unet.config.items() if name[0] != "_"})
    unet.load_state_dict(pipeline.unet.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Theirs(
            pipeline.vae,
            pipeline.text_encoder,
            pipeline.tokenizer,
            unet,
            scheduler(),
            None,
            None,
            requires_safety_checker=False,
        )
        theirs.set_progress_bar_config(disable=True)
        ours = StableDiffusionGLIGENPipeline(
            pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.unet, scheduler()
        )
        ours.set_progress_bar_config(disable=True)
        own = {
            **GROUNDED,
            "gligen_boxes": [BOX, [0.5, 0.5, 1.0, 0.9]],
            "gligen_phrases": ["a one", "two and three"],
            "gligen_scheduled_sampling_beta": beta,
            "num_images_per_prompt": 2,
            "negative_prompt": ["a four", "a four"],
        }
        expected = sample(theirs, ["a one", "a two"], **own)
    torch.testing.assert_close(sample(ours, ["a one", "a two"], **own), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_decay_against_a_loop_written_out(pipeline: StableDiffusionGLIGENPipeline) -> None:
    """Strength 1, 0.5, 0, 0 by hand: weights of the gates changed instead of a scale passed."""
    steps, scales = 4, [1.0, 0.5, 0.0, 0.0]
    text = {"prompt_embeds": torch.randn(1, 16, 32), "negative_prompt_embeds": torch.randn(1, 16, 32)}
    embeds, start = torch.randn(1, 32), torch.randn(1, 4, 12, 20)
    ours = sample(
        pipeline,
        None,
        **text,
        latents=start,
        height=48,
        width=80,
        num_inference_steps=steps,
        gligen_boxes=[BOX],
        gligen_phrase_embeds=embeds,
        gligen_scheduled_sampling_beta=0.25,
        gligen_decay=0.5,
        gligen_max_boxes=6,
    )

    unet, scheduler = make_unet(), make_scheduler()
    unet.load_state_dict(pipeline.unet.state_dict())
    alphas = [p for name, p in unet.named_parameters() if is_adapter_key(name) and "alpha" in name]
    wide = [alpha.clone() for alpha in alphas]
    boxes, masks, states = torch.zeros(2, 6, 4), torch.zeros(2, 6), torch.zeros(2, 6, 32)
    boxes[:, 0], masks[1, 0], states[:, 0] = torch.tensor(BOX), 1, embeds
    scheduler.set_timesteps(steps)
    latents, both = start, torch.cat((text["negative_prompt_embeds"], text["prompt_embeds"]))
    for timestep, scale in zip(scheduler.timesteps, scales, strict=True):
        for alpha, value in zip(alphas, wide, strict=True):
            alpha.copy_(torch.atanh(scale * value.tanh()))
        gligen = {"boxes": boxes, "masks": masks, "positive_embeddings": states}
        noise = unet(torch.cat((latents, latents)), timestep, both, cross_attention_kwargs={"gligen": gligen}).sample
        plain, conditioned = noise.chunk(2)
        latents = scheduler.step(plain + 4.0 * (conditioned - plain), timestep, latents).prev_sample
    torch.testing.assert_close(ours, latents, atol=1e-5, rtol=1e-4)


def test_grounding_is_computed_once_and_skipped_afterwards(pipeline: StableDiffusionGLIGENPipeline) -> None:
    """beta 0.4 of 5 steps: fusers run in two steps; tokens are computed once for boxes and once for the null token."""
    fuser = next(module for module in pipeline.unet.modules() if isinstance(module, GatedSelfAttention))
    calls, tokens = [], []
    hooks = [
        fuser.register_forward_hook(lambda *_: calls.append(1)),
        pipeline.unet.position_net.linears.register_forward_hook(lambda *_: tokens.append(1)),
    ]
    try:
        sample(pipeline, **GROUNDED)
    finally:
        for hook in hooks:
            hook.remove()
    assert (len(calls), len(tokens)) == (2, 2)


def test_a_second_order_scheduler(pipeline: StableDiffusionGLIGENPipeline) -> None:
    """Heun makes 2n - 1 calls; the share is of the calls, as in diffusers."""
    heun = StableDiffusionGLIGENPipeline(
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.unet,
        HeunDiscreteScheduler.from_config(make_scheduler().config),
    )
    heun.set_progress_bar_config(disable=True)
    seen: list[bool] = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(bool(kwargs.get("cross_attention_kwargs"))), with_kwargs=True
    )
    try:
        sample(heun, **GROUNDED)
    finally:
        hook.remove()
    assert seen == [True] * 3 + [False] * 6


def test_layouts_of_their_own_in_a_batch(pipeline: StableDiffusionGLIGENPipeline) -> None:
    """A picture does not depend on its neighbours; prompt-major order with several pictures a prompt."""
    both = sample(
        pipeline,
        ["a one", "a two"],
        gligen_boxes=[[BOX], []],
        gligen_phrases=[["a one"], []],
        num_images_per_prompt=2,
        height=48,
        width=80,
    )
    assert both.shape == (4, 4, 12, 20)
    for row in range(4):
        own = {"gligen_boxes": [BOX], "gligen_phrases": ["a one"]} if row < 2 else {}
        alone = sample(
            pipeline,
            "a one" if row < 2 else "a two",
            height=48,
            width=80,
            generator=torch.Generator().manual_seed(row),
            **own,
        )
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-4, rtol=1e-4)


def test_one_generator_for_all_and_no_guidance(pipeline: StableDiffusionGLIGENPipeline) -> None:
    own = {**GROUNDED, "num_images_per_prompt": 2, "guidance_scale": 1.0, "eta": 0.7}
    torch.manual_seed(1)
    first = sample(pipeline, **own, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(2)  # the global random state decides nothing
    assert torch.equal(first, sample(pipeline, **own, generator=torch.Generator().manual_seed(9)))
    assert not torch.equal(first, sample(pipeline, **own, generator=torch.Generator().manual_seed(8)))


def test_phrase_embeddings_in_the_place_of_phrases(pipeline: StableDiffusionGLIGENPipeline) -> None:
    embeds = pipeline._embed_phrases(["a one"])
    given = {**GROUNDED, "gligen_phrases": None, "gligen_phrase_embeds": embeds}
    torch.testing.assert_close(sample(pipeline, **given), sample(pipeline, **GROUNDED), atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="16 wide, the model's 32"):
        sample(pipeline, **given | {"gligen_phrase_embeds": torch.zeros(1, 16)})


def test_threads_share_a_pipeline(pipeline: StableDiffusionGLIGENPipeline) -> None:
    """Grounded, ungrounded and of different length at once: each as alone."""
    kinds: list[dict[str, Any]] = [
        GROUNDED,
        {},
        {**GROUNDED, "num_inference_steps": 9, "gligen_decay": 0.4},
        {"num_inference_steps": 3, "guidance_scale": 1.0},
    ]
    alone = [sample(pipeline, **kind) for kind in kinds]
    together: dict[int, torch.Tensor] = {}

    def one(number: int) -> None:
        together[number] = sample(pipeline, **kinds[number])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        torch.testing.assert_close(together[number], expected, atol=1e-5, rtol=1e-5)


class CountsSteps(PipelineCallback):
    """An official callback object."""

    tensor_inputs: ClassVar = ["latents"]
    seen = 0

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        self.seen += 1
        assert pipeline.guidance_scale == 4.0
        return callback_kwargs


def test_callbacks_and_interruption(pipeline: StableDiffusionGLIGENPipeline) -> None:
    counts = CountsSteps()
    sample(pipeline, **GROUNDED, callback_on_step_end=counts)
    assert counts.seen == 5
    seen = []

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        pipe._interrupt = step == 1
        return {}

    sample(pipeline, **GROUNDED, callback_on_step_end=stop)
    assert seen == [0, 1]
    old: list[int] = []
    with pytest.warns(FutureWarning):
        sample(pipeline, **GROUNDED, callback=lambda step, *_: old.append(step), callback_steps=2)
    assert old == [0, 2, 4]


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_output_types(pipeline: StableDiffusionGLIGENPipeline, kind: str) -> None:
    images = sample(pipeline, **GROUNDED, output_type=kind, height=40, width=72)
    size = {
        "pil": lambda: images[0].size[::-1],
        "np": lambda: images.shape[1:3],
        "pt": lambda: tuple(images.shape[2:]),
    }[kind]()
    assert tuple(size) == (40, 72)


@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16, torch.float32, torch.float32), (torch.float32, torch.bfloat16, torch.float32)]
)
def test_parts_of_different_precision(dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]) -> None:
    pipe = make_pipeline()
    expected = sample(pipe, **GROUNDED)
    for part, dtype in zip((pipe.unet, pipe.text_encoder, pipe.vae), dtypes, strict=True):
        part.to(dtype)
    latents = sample(pipe, **GROUNDED).float()
    assert (latents - expected).abs().mean() < 0.1 * expected.abs().mean()
    assert sample(pipe, **GROUNDED, output_type="pil")[0].size == (64, 64)


def test_a_folder_opens_and_a_plain_one_is_refused(tmp_path: Path, pipeline: StableDiffusionGLIGENPipeline) -> None:
    from diffusers import StableDiffusionGLIGENPipeline as Theirs

    opened = StableDiffusionGLIGENPipeline.from_pretrained(write(tmp_path / "model"))
    opened.set_progress_bar_config(disable=True)
    assert torch.equal(sample(opened, **GROUNDED), sample(pipeline, **GROUNDED))
    assert isinstance(Theirs.from_pretrained(tmp_path / "model"), Theirs)
    with pytest.raises(ConfigError, match="has no GLIGEN layers"):
        StableDiffusionGLIGENPipeline(
            pipeline.vae,
            pipeline.text_encoder,
            pipeline.tokenizer,
            UNet2DConditionModel(
                block_out_channels=(8, 8),
                norm_num_groups=4,
                down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2,
            ),
            make_scheduler(),
        )


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"gligen_boxes": [[0.5, 0.2, 0.1, 0.6]]}, "is reversed"),
        ({"gligen_phrases": None}, "1 boxes and 0 phrases"),
        ({"gligen_boxes": [BOX] * 31, "gligen_phrases": ["a one"] * 31}, "more than the 30 slots"),
        ({"gligen_scheduled_sampling_beta": 2.0}, "gligen_scheduled_sampling_beta is 2.0"),
        (
            {"gligen_boxes": [[BOX]] * 2, "gligen_phrases": [["a one"]] * 2},
            "2 lists of boxes for 1 prompt",
        ),
    ],
)
def test_bad_input_is_named(pipeline: StableDiffusionGLIGENPipeline, more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        sample(pipeline, **GROUNDED | more)


def test_an_empty_caption_and_an_empty_phrase(pipeline: StableDiffusionGLIGENPipeline) -> None:
    assert sample(pipeline, "", **GROUNDED | {"gligen_phrases": [""]}).isfinite().all()
