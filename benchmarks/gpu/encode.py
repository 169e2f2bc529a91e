"""``python -m benchmarks.gpu.encode [dtype]``: SDXL-size autoencoder on a GPU, batched against one by one in fp32.

Bar: 3 ×. Random weights (no download), photographs of SA-1B's size, 512 px; ``dtype`` is bf16 (default) or fp16. SDXL's
own autoencoder overflows in fp16, so bf16 is what a real run would take. Not run yet: no GPU was at hand.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from benchmarks.encoding import LatentEncoder, compare, write_photographs

IMAGES, BATCH = 256, 16


def sdxl_vae() -> AutoencoderKL:
    """SDXL's autoencoder: 83.7 M parameters, f = 8."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=1024,
        scaling_factor=0.13025,
    ).eval()


def main(dtype: torch.dtype) -> int:
    """Prints the result; 0 when the bar is reached."""
    if not torch.cuda.is_available():
        print("no GPU is visible: nothing was measured", file=sys.stderr)
        return 2
    plain = sdxl_vae().cuda()
    half = sdxl_vae().to("cuda", dtype, memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name), IMAGES, (1500, 2000))
        # bf16 keeps 8 bits: after some thirty layers a few hundredths of the latents' deviation.
        result = compare(
            f"encode_vs_one_by_one_{torch.cuda.get_device_name().replace(' ', '_')}", Path(name), IMAGES, 512, 3.0,
            plain, LatentEncoder(half, "cuda", dtype), BATCH, device="cuda", tolerance=0.2,
        )  # fmt: skip
    print(result.line(), f"({os.cpu_count()} cores decode)")
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main({"bf16": torch.bfloat16, "fp16": torch.float16}[sys.argv[1] if sys.argv[1:] else "bf16"]))
