"""CrossFlow at 512 px with CLIP and DiMR: the first model at twice the side, with a third stage.

It starts from what fits of the registered model crossflow-256-clip-dimr (``start`` names another, or scratch).
``make run`` runs the twin here, ``make compile`` writes the Kubeflow pipeline. Its parameters and steps are those of
``_crossflow``.
"""

from pipelines import _crossflow

RECIPE = "crossflow:512_clip_dimr"

CHOICES = _crossflow.CHOICES
settle = _crossflow.settle_of(RECIPE)
pipeline = _crossflow.crossflow(RECIPE, "CrossFlow at 512 px, CLIP, DiMR: starts from the model at 256 px.")
