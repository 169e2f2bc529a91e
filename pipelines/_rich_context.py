"""What Rich-context's pipelines share: one DAG, whose defaults say on which base.

Not a pipeline of its own (its name begins with an underscore): each of them is a file beside it.
"""

from typing import Any

from kfp import dsl

from components.base import base
from components.convert import convert
from components.download import download
from components.evaluate import evaluate
from components.evaluate_layouts import evaluate_layouts
from components.judge import judge
from components.predecessor import predecessor
from components.preprocess import preprocess
from components.register import register
from components.report import report
from components.sample import sample
from components.source import source
from components.train import train

CHOICES = {"profile": ("laptop", "paper", "parity")}


def rich_context(recipe: str, name: str, description: str, title: str, own_name: str) -> Any:
    """The DAG with the defaults of one base.

    Args:
        recipe: what is trained, e.g. ``rich_context:sd15``.
        name, description: as Kubeflow shows them.
        title: the report's.
        own_name: name under which the model is registered where nobody says.
    """

    def pipeline(
        artifacts: str = "",
        profile: str = "laptop",
        seed: int = 0,
        images: int = 8000,
        pictures: str = "",
        captions: str = "",
        boxes: str = "",
        base_model: str = "",
        start: str = "",
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
        clip: str = "",
        pick: str = "",
        pick_tokenizer: str = "",
        sam: str = "",
        eval_batch: int = 0,
        bars: str = "",
        model_name: str = own_name,
    ) -> None:
        """Trains, judges and registers.

        Args:
            artifacts: Folder or bucket of all outputs, e.g. s3://bucket/prefix. Empty, locally: .atelier/artifacts.
            profile: laptop (the tiny twin on CPU), paper (the published size) or parity (upstream's peculiarities too).
            seed: Seeds drawing, training and sampling.
            images: How many training canvases of handwritten digits are drawn; unused when pictures is given.
            pictures: URI of the images and of img2dataset's JSON beside them, which says where in its border a picture
                lies, e.g. s3://bucket/cc3m-images/*/ (all files of all its folders), or of img2dataset's tars, e.g.
                s3://bucket/cc3m-tars/*.tar. Empty draws digits.
            captions: URI of COCO's captions JSON, for label files that hold no caption.
            boxes: URI of the label files, e.g. s3://bucket/labels/label_*.json, as the published generation writes
                them, or of tars of them.
            base_model: URI of the frozen base, a diffusers folder (hf://, s3://, file://). Empty is the recipe's own.
            start: Regional layers to begin with: a released pipeline's folder, a .pth of them, models:/name@alias or a
                URI of ours. Empty begins from nothing.
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
            clip: CLIP to measure CropCLIP with, e.g. openai/clip-vit-base-patch32. Empty leaves it out.
            pick: PickScore to measure CropPick with, e.g. yuvalkirstain/PickScore_v1. Empty leaves it out.
            pick_tokenizer: Folder of PickScore's tokenizer, where its own holds none and clip is empty.
            sam: SAM to measure SAMIoU with, e.g. facebook/sam-vit-huge. Empty leaves it out.
            eval_batch: Crops measured at once; 0 is 64.
            bars: What metrics must reach for a model to pass, a JSON object in the place of the recipe's own.
            model_name: Name of the registered model.
        """
        of = {"artifacts": artifacts, "recipe": recipe, "profile": profile}

        origin = source(pictures=pictures, captions=captions, boxes=boxes, images=images, seed=seed, **of)
        raw = download(source=origin.outputs["source"], artifacts=artifacts).outputs["raw"]
        frozen = base(pretrain=pretrain, uri=base_model, seed=seed, **of).outputs["base"]
        begin = predecessor(base=frozen, address=start, **of)
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
            start=begin.outputs["Output"],
            **of,
        ).outputs["training"]
        model = convert(training=training, base=frozen, **of).outputs["model"]
        reader = judge(artifacts=artifacts, seed=seed).outputs["judge"]
        samples = sample(
            model=model, count=sample_count, steps=sample_steps, guidance=guidance, seed=seed, **of
        ).outputs["samples"]
        read = evaluate(samples=samples, judge=reader, **of).outputs["evaluation"]
        evaluation = evaluate_layouts(
            samples=samples,
            evaluation=read,
            clip=clip,
            pick=pick,
            pick_tokenizer=pick_tokenizer,
            sam=sam,
            batch=eval_batch,
            bars=bars,
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
            title=title,
            artifacts=artifacts,
        )

    return dsl.pipeline(name=name, description=description)(pipeline)
