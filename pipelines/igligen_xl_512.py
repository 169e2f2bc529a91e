"""IGLIGEN-XL at 512: GLIGEN's grounded generation on SDXL, from raw data to a judged, registered model.

``make run`` runs it here with the profile ``laptop`` (a twin of a few million parameters on real handwritten
digits); ``make compile`` writes the Kubeflow pipeline.
"""

from kfp import dsl

from components.base import base
from components.convert import convert
from components.download import download
from components.evaluate import evaluate
from components.judge import judge
from components.preprocess import preprocess
from components.register import register
from components.report import report
from components.sample import sample
from components.source import source
from components.train import train

RECIPE = "igligen_xl"

CHOICES = {"profile": ("laptop", "paper")}


@dsl.pipeline(name="igligen-xl-512", description="IGLIGEN-XL at 512 px: pictures with things where you ask for them.")
def pipeline(
    artifacts: str = "",
    profile: str = "laptop",
    seed: int = 0,
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
    model_name: str = "igligen-xl",
) -> None:
    """Trains, judges and registers.

    Args:
        artifacts: Folder or bucket of all outputs, e.g. s3://bucket/prefix. Locally, when empty, .atelier/artifacts.
        profile: laptop (the tiny twin on CPU) or paper (the published size).
        seed: Seeds drawing, training and sampling.
        images: How many training canvases of handwritten digits are drawn; unused when tars or latents are given.
        tars: URI of SA-1B tars, e.g. s3://bucket/sa_{000000..000099}.tar. Empty draws digits.
        captions: URI of the caption parquet that goes with tars.
        boxes: URI of the boxes files that go with tars, or (those with sizes) with latents.
        latents: URI of published latents at 512, e.g. s3://bucket/sa1b-sdxl-latents-512/*.npy, in the place of tars.
        base_model: URI of the frozen base, a diffusers folder (hf://, s3://, file://). Empty is the recipe's own.
        pretrain: Make the twin's base, text encoders and VAE from nothing instead of taking the shipped ones.
        samples_per_shard: Samples in a shard; 0 is the recipe's own.
        encode_batch_size: Images encoded at once; 0 is the recipe's own.
        max_quarantined: Share of unreadable samples at which the run fails; 0 is the recipe's own.
        train_steps: Optimizer steps; 0 is the recipe's own.
        batch_size: Samples a step over all processes; 0 is the recipe's own.
        learning_rate: Peak learning rate; 0 is the recipe's own.
        processes: Training processes; 0 is the recipe's own.
        zero_stage: DeepSpeed's ZeRO stage; -1 is the recipe's own.
        train_overrides: Further fields of the training configuration, a JSON object.
        sample_count: Held-out layouts to sample; 0 is the recipe's own.
        sample_steps: Denoising steps; 0 is the recipe's own.
        guidance: Guidance scale; 0 is the recipe's own.
        model_name: Name of the registered model.
    """
    of = {"artifacts": artifacts, "recipe": RECIPE, "profile": profile}

    origin = source(tars=tars, captions=captions, boxes=boxes, latents=latents, images=images, seed=seed, **of)
    raw = download(source=origin.outputs["source"], artifacts=artifacts).outputs["raw"]
    frozen = base(pretrain=pretrain, uri=base_model, seed=seed, **of).outputs["base"]
    shards = preprocess(
        raw=raw,
        base=frozen,
        samples_per_shard=samples_per_shard,
        batch_size=encode_batch_size,
        max_quarantined=max_quarantined,
        **of,
    ).outputs["shards"]
    training = train(
        shards=shards,
        base=frozen,
        steps=train_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        processes=processes,
        zero_stage=zero_stage,
        overrides=train_overrides,
        **of,
    ).outputs["training"]
    model = convert(training=training, base=frozen, **of).outputs["model"]
    reader = judge(artifacts=artifacts, seed=seed).outputs["judge"]
    samples = sample(model=model, count=sample_count, steps=sample_steps, guidance=guidance, seed=seed, **of).outputs[
        "samples"
    ]
    evaluation = evaluate(samples=samples, judge=reader, **of).outputs["evaluation"]
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
        title="IGLIGEN-XL 512",
        artifacts=artifacts,
    )
