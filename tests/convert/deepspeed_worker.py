"""A rank that trains a tiny grounded UNet with DeepSpeed alone and lets DeepSpeed itself save: a foreign checkpoint.

Run as ``python -m deepspeed_worker FOLDER STAGE PRECISION`` under torchrun.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from atelier.models.grounded_unet import adapter_parameters, attach, freeze_base
from atelier.training.runtime import start_ranks
from atelier.training.scalars import scalars_set_aside


def main() -> None:
    """Two steps; rank 0 also writes what the weights truly are, gathered without looking at the checkpoint."""
    folder, stage, precision = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    ranks = start_ranks(1)
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param
    from diffusers import UNet2DConditionModel

    from tests.convert import tiny

    torch.manual_seed(0)
    unet = attach(UNet2DConditionModel(**tiny.CONFIGS["SD1"]))
    freeze_base(unet)
    trained = adapter_parameters(unet)
    settings = {
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1_000_000, "allgather_bucket_size": 1_000_000},
        "steps_per_print": 2**31,
    }
    if precision == "bf16":
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    optimizer = torch.optim.AdamW(list(trained.values()), lr=1e-2)
    with scalars_set_aside(unet, ranks):  # DeepSpeed 0.19.8 cannot start with a 0-dimensional parameter
        engine, *_ = deepspeed.initialize(
            model=unet, model_parameters=list(trained.values()), optimizer=optimizer, config=settings
        )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for step in range(2):
        torch.manual_seed(10 * step + ranks.rank)
        boxes = torch.rand(1, 3, 4).sort(-1).values.to(dtype)
        given = {"boxes": boxes, "masks": torch.ones(1, 3, dtype=dtype)}
        given["positive_embeddings"] = torch.randn(1, 3, 24, dtype=dtype)
        output = engine(
            torch.randn(1, 4, 8, 8, dtype=dtype),
            torch.tensor([500]),
            torch.randn(1, 5, 24, dtype=dtype),
            cross_attention_kwargs={"gligen": given},
        ).sample
        engine.backward(output.float().square().mean())
        engine.step()
    truth = {name: safe_get_full_fp32_param(parameter) for name, parameter in trained.items()}
    if ranks.first:
        save_file({name: tensor.clone() for name, tensor in truth.items()}, folder / "truth.safetensors")
    engine.save_checkpoint(str(folder / "saved"), tag="step2", exclude_frozen_parameters=True)
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
