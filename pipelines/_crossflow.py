"""What CrossFlow's pipelines share: one DAG, whose defaults say which model it makes and which one it starts from.

Not a pipeline of its own (its name begins with an underscore): each of them is a file beside it.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from atelier.recipes.crossflow import PREDECESSORS, pipeline_of
from atelier.recipes.registry import predecessor_of
from components.base import base
from components.convert import convert
from components.download import download
from components.evaluate import evaluate
from components.evaluate_text import evaluate_text
from components.judge import judge
from components.predecessor import predecessor
from components.preprocess import preprocess
from components.register import register
from components.report import report
from components.sample import sample
from components.source import source
from components.train import train

SCRATCH = "scratch"

CHOICES = {"profile": ("laptop", "paper"), "recipe": ("crossflow", *(f"crossflow:{stage}" for stage in PREDECESSORS))}


def model_of(recipe: str) -> str:
    """The name under which a model of the recipe is registered."""
    return pipeline_of(recipe).replace("_", "-")


def settle_of(own: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The ``settle`` of the pipeline whose own model is ``own``."""

    def settle(arguments: dict[str, Any]) -> dict[str, Any]:
        """Before anything runs: names follow the recipe; says so when there is nothing to start from."""
        from atelier.steps.predecessor import require

        recipe, start = arguments["recipe"], arguments["start"]
        name, start_name = arguments["model_name"], arguments["start_name"]
        if recipe != own:
            name = model_of(recipe) if name == model_of(own) else name
            if start_name == start_name_of(own):
                start_name = start_name_of(recipe)
        if not start and not start_name:
            start = SCRATCH
        require(
            address=start,
            name=start_name,
            recipe=recipe,
            profile=arguments["profile"],
            made_by=pipeline_of(predecessor_of(recipe)),
        )
        decided = {"model_name": name, "start_name": start_name, "start": start}
        return {key: value for key, value in decided.items() if value != arguments[key]}

    return settle


def start_name_of(recipe: str) -> str:
    """The name of the registered model that a recipe starts from; "" for the first of the chain."""
    before = predecessor_of(recipe)
    return model_of(before) if before else ""


def crossflow(own: str, description: str) -> Any:
    """The DAG with the defaults of one model.

    Args:
        own: its recipe, e.g. ``crossflow:512_t5_dit``.
        description: as Kubeflow shows it.
    """
    own_name, own_start = model_of(own), start_name_of(own)

    def pipeline(
        artifacts: str = "",
        profile: str = "laptop",
        recipe: str = own,
        seed: int = 0,
        start: str = "",
        start_name: str = own_start,
        images: int = 8000,
        pictures: str = "",
        captions: str = "",
        form: str = "",
        filters: str = "",
        resolutions: str = "",
        base_model: str = "",
        text_model: str = "",
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
        eval_batch: int = 0,
        bars: str = "",
        model_name: str = own_name,
    ) -> None:
        """Trains, judges and registers.

        Args:
            artifacts: Folder or bucket of all outputs, e.g. s3://bucket/prefix. Empty, locally: .atelier/artifacts.
            profile: laptop (the tiny twin on CPU) or paper (the published size).
            recipe: The model: crossflow is 256 px, CLIP, DiMR; the others name resolution, language model and backbone.
            seed: Seeds drawing, training and sampling.
            start: What training begins with: models:/name@alias, a folder's URI, a released .pth; or scratch, nothing.
                Empty is the champion of start_name, and nothing for the first of the chain.
            start_name: Name under which the model before in the chain is registered.
            images: How many training canvases of handwritten digits are drawn; unused when pictures is given.
            pictures: URI of images (s3://bucket/imgs/*.jpg), of JourneyDB's tars (imgs/{000..199}.tgz), or of
                img2dataset's ({00000..41455}.tar, without captions). Empty draws digits.
            captions: URI of the list of prompts, a .jsonl (or .jsonl.tgz) with img_path and prompt a line.
            form: How digits are drawn: captioned (also when empty) or img2dataset.
            filters: Thresholds in the place of the recipe's own, a JSON object, e.g. {"min_side": 512}.
            resolutions: Sides of the squares to encode, e.g. 256,512; empty is the recipe's own.
            base_model: URI of the frozen base, a diffusers folder (hf://, s3://, file://). Empty is the recipe's own.
            text_model: URI of T5's encoder and tokenizer, for a model that reads T5. Empty is the recipe's own.
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
            eval_count: Pictures that these are measured on; 0 is 30,000 of COCO's captions, or the whole file of
                prompts.
            fid_weights: Place of FID's Inception weights (pt_inception-2015-12-05-6726825d.pth). Empty leaves FID out.
            fid_statistics: Place of the npz with mu and sigma that FID compares with.
            clip: A CLIP's folder or id, e.g. openai/clip-vit-base-patch32. Empty leaves the CLIP score out.
            eval_batch: Pictures drawn and measured at once for FID and CLIP score; 0 is the recipe's own.
            bars: What metrics must reach for the model to pass, in the place of the recipe's own, a JSON object, e.g.
                {"fid": 12} (at most), {"layout_accuracy": 0.9} (at least).
            model_name: Name of the registered model.
        """
        of = {"artifacts": artifacts, "recipe": recipe, "profile": profile}

        frozen = base(pretrain=False, uri=base_model, text_uri=text_model, seed=seed, **of).outputs["base"]
        begin = predecessor(base=frozen, address=start, name=start_name, **of)
        # A start that cannot be is told before any data is fetched.
        origin = source(pictures=pictures, captions=captions, form=form, images=images, seed=seed, **of).after(begin)
        raw = download(source=origin.outputs["source"], artifacts=artifacts).outputs["raw"]
        shards = preprocess(
            raw=raw,
            base=frozen,
            samples_per_shard=samples_per_shard,
            batch_size=encode_batch_size,
            max_quarantined=max_quarantined,
            filters=filters,
            resolutions=resolutions,
            **of,
        ).outputs["shards"]
        training = train(
            shards=shards,
            base=frozen,
            start=begin.outputs["Output"],
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
        samples = sample(
            model=model, count=sample_count, steps=sample_steps, guidance=guidance, seed=seed, **of
        ).outputs["samples"]
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
            batch=eval_batch,
            bars=bars,
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
            title=model_name,
            artifacts=artifacts,
        )

    return dsl.pipeline(name=own_name, description=description)(pipeline)
