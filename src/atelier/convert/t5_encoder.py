"""T5's encoder to safetensors in bf16, whatever it was published as."""

from pathlib import Path

from atelier.errors import DataError


def write_encoder(source: Path, target: Path) -> None:
    """Opens a T5 (pickles with ``weights_only``, a decoder beside it is left out) and writes its encoder.

    Args:
        source: a transformers folder.

    Raises:
        DataError: its weights are missing or damaged.
    """
    import torch
    from transformers import T5EncoderModel

    try:
        encoder = T5EncoderModel.from_pretrained(source, dtype=torch.bfloat16)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{source} is no whole T5 ({reason[:200]})", "copy or download it again") from error
    encoder.save_pretrained(target)
