"""IGLIGEN-XL at 1024: the second stage, which goes on from what the first one (``igligen_xl_512``) learned.

Stage 1's model is taken from the registry or from a URI, or trained first by the very steps of its own pipeline, which
are cached where that one ran. ``make run`` runs it here with the profile ``laptop``, ``make compile`` writes the
Kubeflow pipeline.
"""

from typing import Any

from kfp import dsl

from components.base import base
from components.convert import convert
from components.download import download
from components.evaluate import evaluate
from components.judge import judge
from components.predecessor import predecessor
from components.preprocess import preprocess
from components.register import register
from components.report import report
from components.sample import sample
from components.source import source
from components.train import train

STAGE_1, STAGE_2 = "igligen_xl", "igligen_xl:1024"

CHOICES = {"profile": ("laptop", "paper"), "train_stage1": ("auto", "true", "false")}


def settle(arguments: dict[str, Any]) -> dict[str, Any]:
    """Before anything runs: whether stage 1 is trained first; says so when there is nothing to start from."""
    from atelier.steps.predecessor import choose

    return {
        "train_stage1": choose(
            arguments["train_stage1"], arguments["stage1"], arguments["stage1_name"], arguments["profile"]
        )
    }


@dsl.pipeline(
    name="igligen-xl-1024", description="IGLIGEN-XL at 1024 px, from the model of 512 px: the recipe's second stage."
)
def pipeline(
    artifacts: str = "",
    profile: str = "laptop",
    seed: int = 0,
    train_stage1: str = "auto",
    stage1: str = "",
    stage1_name: str = "igligen-xl",
    stage1_latents: str = "",
    stage1_overrides: str = "",
    images: int = 8000,
    tars: str = "",
    captions: str = "",
    boxes: str = "",
    latents: str = "",
    base_model: str = "",
    pretrain: bool = False,
    samples_per_shard: int = 0,
    encode_batch_size: int = 0,
    max_quarantined: float = 0.0,
    train_steps: int = 0,
    batch_size: int = 0,
    learning_rate: float = 0.0,
    processes: int = 0,
    zero_stage: int = -1,
    train_overrides: str = "",
    sample_count: int = 0,
    sample_steps: int = 0,
    guidance: float = 0.0,
    model_name: str = "igligen-xl-1024",
) -> None:
    """Trains, judges and registers; stage 1 first where asked to.

    Args:
        artifacts: Folder or bucket of all outputs, e.g. s3://bucket/prefix. Locally, when empty, .atelier/artifacts.
        profile: laptop (the tiny twin on CPU) or paper (the published size).
        seed: Seeds drawing, training and sampling.
        train_stage1: true trains stage 1 first, false takes its model; auto trains it on a laptop that has none.
        stage1: Stage 1's model, models:/name@alias or a folder's URI. Empty is the champion of stage1_name.
        stage1_name: Name under which stage 1's model is registered.
        stage1_latents: URI of published latents at 512, for training stage 1 from latents.
        stage1_overrides: Fields of stage 1's training configuration, a JSON object; for training it.
        images: How many training canvases of handwritten digits are drawn; unused when tars or latents are given.
        tars: URI of SA-1B tars, e.g. s3://bucket/sa_{000000..000099}.tar. Empty draws digits.
        captions: URI of the caption parquet that goes with tars.
        boxes: URI of the boxes files that go with tars, or (those with sizes) with latents.
        latents: URI of published latents at 1024, e.g. s3://bucket/sa1b-sdxl-latents-1024/*.npy, in the place of tars.
        base_model: URI of the frozen base, a diffusers folder (hf://, s3://, file://). Empty is the recipe's own.
        pretrain: Make the twin's base, text encoders and VAE from nothing instead of taking the shipped ones.
        samples_per_shard: Samples in a shard; 0 is the recipe's own.
        encode_batch_size: Images encoded at once; 0 is the recipe's own.
        max_quarantined: Share of unreadable samples at which the run fails; 0 is the recipe's own.
        train_steps: Optimizer steps of stage 2; 0 is the recipe's own.
        batch_size: Samples a step over all processes, in stage 2; 0 is the recipe's own.
        learning_rate: Peak learning rate of stage 2; 0 is the recipe's own.
        processes: Training processes; 0 is the recipe's own.
        zero_stage: DeepSpeed's ZeRO stage; -1 is the recipe's own.
        train_overrides: Further fields of stage 2's training configuration, a JSON object.
        sample_count: Held-out layouts to sample; 0 is the recipe's own.
        sample_steps: Denoising steps; 0 is the recipe's own.
        guidance: Guidance scale; 0 is the recipe's own.
        model_name: Name of the registered model.
    """
    first = {"artifacts": artifacts, "recipe": STAGE_1, "profile": profile}
    second = {"artifacts": artifacts, "recipe": STAGE_2, "profile": profile}
    data = {"tars": tars, "captions": captions, "boxes": boxes, "images": images, "seed": seed}
    encoding = {
        "samples_per_shard": samples_per_shard,
        "batch_size": encode_batch_size,
        "max_quarantined": max_quarantined,
    }
    ranks = {"seed": seed, "processes": processes, "zero_stage": zero_stage}
    sampling = {"count": sample_count, "steps": sample_steps, "guidance": guidance, "seed": seed}

    frozen = base(pretrain=pretrain, uri=base_model, seed=seed, **first).outputs["base"]
    reader = judge(artifacts=artifacts, seed=seed).outputs["judge"]

    with dsl.If(train_stage1 == "true", "train-stage-1"):
        origin1 = source(latents=stage1_latents, **data, **first).outputs["source"]
        raw1 = download(source=origin1, artifacts=artifacts).outputs["raw"]
        shards1 = preprocess(raw=raw1, base=frozen, **encoding, **first).outputs["shards"]
        training1 = train(shards=shards1, base=frozen, overrides=stage1_overrides, **ranks, **first).outputs["training"]
        model1 = convert(training=training1, base=frozen, **first).outputs["model"]
        samples1 = sample(model=model1, **sampling, **first).outputs["samples"]
        evaluation1 = evaluate(samples=samples1, judge=reader, **first).outputs["evaluation"]
        trained = register(
            model=model1, evaluation=evaluation1, training=training1, name=stage1_name, artifacts=artifacts
        )
    with dsl.Else("take-stage-1"):
        taken = predecessor(base=frozen, address=stage1, name=stage1_name, **second)
    start = dsl.OneOf(trained.outputs["Output"], taken.outputs["Output"])

    origin = source(latents=latents, **data, **second).outputs["source"]
    raw = download(source=origin, artifacts=artifacts).outputs["raw"]
    shards = preprocess(raw=raw, base=frozen, **encoding, **second).outputs["shards"]
    training = train(
        shards=shards,
        base=frozen,
        start=start,
        steps=train_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        overrides=train_overrides,
        **ranks,
        **second,
    ).outputs["training"]
    model = convert(training=training, base=frozen, **second).outputs["model"]
    samples = sample(model=model, **sampling, **second).outputs["samples"]
    evaluation = evaluate(samples=samples, judge=reader, **second).outputs["evaluation"]
    registration = register(
        model=model, evaluation=evaluation, training=training, name=model_name, artifacts=artifacts
    ).outputs["registration"]
    report(
        raw=raw,
        base=frozen,
        shards=shards,
        training=training,
        model=model,
        samples=samples,
        evaluation=evaluation,
        registration=registration,
        title="IGLIGEN-XL 1024",
        artifacts=artifacts,
    )
