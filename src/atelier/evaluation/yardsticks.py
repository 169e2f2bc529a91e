"""What text-to-image models are measured with, as it is given; opens nothing."""

from dataclasses import dataclass

from atelier.errors import ConfigError


@dataclass(frozen=True)
class Yardsticks:
    """What pictures are measured with; what is "" leaves its metric out.

    Attributes:
        fid_weights: FID's Inception (file, or its URI).
        fid_statistics: npz with mu and sigma of the pictures to compare with (file, or its URI).
        fid_images: in its place a folder of them, whose statistics are computed and kept.
        clip: folder or id of a CLIP.
    """

    fid_weights: str = ""
    fid_statistics: str = ""
    fid_images: str = ""
    clip: str = ""

    def check(self) -> None:
        """Refuses what can give no figure.

        Raises:
            ConfigError: half of what FID needs, or two references.
        """
        if self.fid_statistics and self.fid_images:
            raise ConfigError("both FID statistics and a folder of pictures are given", "give one of them")
        reference = self.fid_statistics or self.fid_images
        if bool(self.fid_weights) != bool(reference):
            given, lacking = ("weights", "a reference") if self.fid_weights else ("a reference", "weights")
            raise ConfigError(
                f"FID has {given} and no {lacking.removeprefix('a ')}",
                "give both or neither: weights (pt_inception-2015-12-05-6726825d.pth) and statistics to compare with",
            )

    @property
    def skipped(self) -> dict[str, str]:
        """The metrics that are left out, and why."""
        why = {}
        if not self.fid_weights:
            why["fid"] = "no weights of FID's Inception and no reference were given"
        if not self.clip:
            why["clip_score"] = "no CLIP was given"
        return why
