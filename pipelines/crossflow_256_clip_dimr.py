"""CrossFlow at 256 px with CLIP and DiMR: text to image by a flow that starts from the text; the first of five models.

``make run`` runs it here with the profile ``laptop`` (a twin of under three million parameters: "a three above a seven"
drawn in real handwriting); ``make compile`` writes the Kubeflow pipeline.
"""

from kfp import dsl

from components.base import base
from components.convert import convert
from components.download import download
from components.evaluate import evaluate
from components.evaluate_text import evaluate_text
from components.judge import judge
from components.preprocess import preprocess
from components.register import register
from components.report import report
from components.sample import sample
from components.source import source
from components.train import train

RECIPE = "crossflow"

CHOICES = {"profile": ("laptop", "paper")}


@dsl.pipeline(
    name="crossflow-256-clip-dimr", description="CrossFlow at 256 px, CLIP, DiMR: pictures that flow from their text."
)
def pipeline(
    artifacts: str = "",
    profile: str = "laptop",
    seed: int = 0,
    images: int = 8000,
    pictures: str = "",
    captions: str = "",
    base_model: str = "",
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
    eval_captions: str = "",
    eval_count: int = 0,
    fid_weights: str = "",
    fid_statistics: str = "",
    clip: str = "",
    model_name: str = "crossflow-256-clip-dimr",
) -> None:
    """Trains, judges and registers.

    Args:
        artifacts: Folder or bucket of all outputs, e.g. s3://bucket/prefix. Locally, when empty, .atelier/artifacts.
        profile: laptop (the tiny twin on CPU) or paper (the published size).
        seed: Seeds drawing, training and sampling.
        images: How many training canvases of handwritten digits are drawn; unused when pictures is given.
        pictures: URI of images, e.g. s3://bucket/journeydb/imgs/*.jpg. Empty draws digits.
        captions: URI of the list of prompts, a .jsonl with img_path and prompt a line.
        base_model: URI of the frozen base, a diffusers folder (hf://, s3://, file://). Empty is the recipe's own.
        samples_per_shard: Samples in a shard; 0 is the recipe's own.
        encode_batch_size: Images encoded at once; 0 is the recipe's own.
        max_quarantined: Share of unreadable samples at which the run fails; 0 is the recipe's own.
        train_steps: Optimizer steps; 0 is the recipe's own.
        batch_size: Samples a step over all processes; 0 is the recipe's own.
        learning_rate: Peak learning rate; 0 is the recipe's own.
        processes: Training processes; 0 is the recipe's own.
        zero_stage: DeepSpeed's ZeRO stage; -1 is the recipe's own.
        train_overrides: Further fields of the training configuration, a JSON object.
        sample_count: Held-out prompts to sample; 0 is the recipe's own.
        sample_steps: Steps of the flow's solver; 0 is the recipe's own.
        guidance: Guidance scale; 0 is the recipe's own.
        eval_captions: Place of COCO's captions file (captions_val2014.json) or of prompts, for FID and CLIP score.
        eval_count: Pictures that these are measured on; 0 is 30,000 of COCO's captions, or the whole file of prompts.
        fid_weights: Place of FID's Inception weights (pt_inception-2015-12-05-6726825d.pth). Empty leaves FID out.
        fid_statistics: Place of the npz with mu and sigma that FID compares with.
        clip: A CLIP's folder or id, e.g. openai/clip-vit-base-patch32. Empty leaves the CLIP score out.
        model_name: Name of the registered model.
    """
    of = {"artifacts": artifacts, "recipe": RECIPE, "profile": profile}

    origin = source(pictures=pictures, captions=captions, images=images, seed=seed, **of)
    raw = download(source=origin.outputs["source"], artifacts=artifacts).outputs["raw"]
    frozen = base(pretrain=False, uri=base_model, seed=seed, **of).outputs["base"]
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
    judged = evaluate(samples=samples, judge=reader, **of).outputs["evaluation"]
    evaluation = evaluate_text(
        model=model,
        evaluation=judged,
        captions=eval_captions,
        count=eval_count,
        fid_weights=fid_weights,
        fid_statistics=fid_statistics,
        clip=clip,
        steps=sample_steps,
        guidance=guidance,
        seed=seed,
        **of,
    ).outputs["measured"]
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
        title="CrossFlow 256 px, CLIP, DiMR",
        artifacts=artifacts,
    )
