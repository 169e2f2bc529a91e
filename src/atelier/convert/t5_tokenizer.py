"""T5's tokenizer from ``spiece.model``, SentencePiece's file, without the library of that name.

The hub's T5 v1.1 holds no ``tokenizer.json``. What transformers needs of the file is its list of pieces and its table
of characters, and the file is a protobuf message whose description transformers brings along.
"""

import json
from pathlib import Path
from typing import Any

from atelier.errors import DataError

SPIECE, FAST = "spiece.model", "tokenizer.json"
_UNIGRAM = 1


def make_fast(folder: Path) -> bool:
    """Writes ``tokenizer.json`` beside ``spiece.model`` where there is none; whether it did.

    Args:
        folder: a tokenizer's, with ``tokenizer_config.json`` or without.

    Raises:
        DataError: the file is no SentencePiece model of unigrams.
    """
    if (folder / FAST).is_file() or not (folder / SPIECE).is_file():
        return False
    from transformers import T5Tokenizer

    model = _model(folder / SPIECE)
    extra = int(_config(folder).get("extra_ids", 100))
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    pieces += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(extra))]
    tokenizer = T5Tokenizer(
        vocab=pieces,
        extra_ids=extra,
        model_max_length=int(_config(folder).get("model_max_length", 512)),
        _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap or None,
    )
    tokenizer.save_pretrained(folder)
    return True


def _model(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise DataError(f"{path} is no SentencePiece model ({error})", "copy or download it again") from error
    if model.trainer_spec.model_type != _UNIGRAM or not model.pieces:
        raise DataError(f"{path} holds no unigrams, which T5 reads", "give T5's own tokenizer")
    return model


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error})", "copy or download it again") from error
    return found
