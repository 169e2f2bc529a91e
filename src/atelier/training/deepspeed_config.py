"""DeepSpeed's settings for a training configuration."""

from typing import Any

from atelier.training.config import TrainConfig

# Elements in a reduction bucket. DeepSpeed's default of 5e8 is 2 GB in fp32, allocated whole on the first backward;
# one bucket larger than a small model's gradients is one collective a step, and 5e7 keeps a large one's overlap.
BUCKET_ELEMENTS = 50_000_000


def deepspeed_config(config: TrainConfig, trainable: int, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's JSON for this run.

    Args:
        trainable: number of trainable parameters; buckets are no larger.
        on_gpu: overlaps communication with the backward pass; on a CPU both compete for the same cores.
    """
    bucket = min(BUCKET_ELEMENTS, trainable + trainable % 2)  # DeepSpeed wants it even
    settings: dict[str, Any] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.process_micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        # Without ZeRO the engine clips by itself.
        "gradient_clipping": (config.clip_norm or 0.0) if config.zero_stage else 0.0,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": on_gpu,
            "contiguous_gradients": on_gpu,
            "reduce_scatter": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "checkpoint": {"tag_validation": "Ignore"},  # costs a collective; our tag is constant
    }
    if config.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    elif config.precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16}
    return settings
