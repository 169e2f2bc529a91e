"""What a training costs before it is started: a recipe's sizes at one profile, readable without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Footprint:
    """Counted once, on meta tensors, and kept beside the recipe; ``tests/recipes/test_footprints.py`` counts again.

    Attributes:
        trainable, frozen: parameters.
        training_flops: of one sample's training step, 1 MAC = 2 FLOP.
        activation_bytes: what one sample holds between forward and backward, in the recipe's own precision, with a
            memory-efficient attention.
        encoding_flops: of one raw example's encoding; 0 where nothing is encoded by a network.
        sample_bytes: of one sample in the shards; an estimate where its length varies.
        raw_bytes: of one raw example.
        examples: in the data set that the paper trained on; 0: as many as the pipeline is asked for.
    """

    trainable: int
    frozen: int
    training_flops: float
    activation_bytes: float
    encoding_flops: float
    sample_bytes: int
    raw_bytes: int
    examples: int = 0

    def checkpoint_bytes(self, ema: bool) -> int:
        """Of one checkpoint: fp32 weights and Adam's two moments of what is trained, and their average."""
        return self.trainable * (16 if ema else 12)
