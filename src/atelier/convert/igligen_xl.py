"""IGLIGEN-XL's folder: ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` needs nothing of ours.

The folder carries its pipeline's code as one file and its index names that file. A folder without code, which opens in
``atelier.sampling``, is ``--to diffusers``.
"""

from pathlib import Path
from typing import Any

from atelier.convert import pipeline_folder, unet_folder
from atelier.convert.bundle import bundle
from atelier.convert.weights import Weights
from atelier.errors import ConfigError

MODULE, PIPELINE = "atelier.sampling.gligen_sdxl", "StableDiffusionXLGLIGENPipeline"
FILE = "pipeline_gligen_sdxl.py"
_ABOUT = """Layout-to-image sampling for an SDXL UNet with GLIGEN's layers (arXiv 2301.07093), in one file.

Made by ``atelier convert`` from Atelier's own modules (Apache-2.0); it needs torch, diffusers and transformers alone.
"""


def write(
    folder: Path, weights: Weights, config: dict[str, Any], base: Path, max_shard: int
) -> tuple[list[str], list[str]]:
    """Writes the folder; arguments and result as ``pipeline_folder.write``.

    Raises:
        ConfigError: the UNet is not SDXL's.
    """
    if unet_folder.family_of(config) != "SDXL":
        raise ConfigError(
            f"IGLIGEN-XL's folder is for SDXL, this UNet is {unet_folder.family_of(config)}", "use --to diffusers"
        )
    code = bundle(MODULE, PIPELINE, _ABOUT)
    result = pipeline_folder.write(folder, weights, config, base, max_shard)
    (folder / FILE).write_text(code, encoding="utf-8")
    index = pipeline_folder.read_index(folder) | {"_class_name": [Path(FILE).stem, PIPELINE]}
    pipeline_folder.write_index(folder, index)
    return result
