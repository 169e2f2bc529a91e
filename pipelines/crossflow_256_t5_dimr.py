"""CrossFlow at 256 px with T5 and DiMR: the first model, taught to read another language model.

It starts from what fits of the registered model crossflow-256-clip-dimr (``start`` names another, or scratch).
``make run`` runs the twin here, ``make compile`` writes the Kubeflow pipeline. Its parameters and steps are those of
``_crossflow``.
"""

from pipelines import _crossflow

RECIPE = "crossflow:256_t5_dimr"

CHOICES = _crossflow.CHOICES
settle = _crossflow.settle_of(RECIPE)
pipeline = _crossflow.crossflow(RECIPE, "CrossFlow at 256 px, T5, DiMR: starts from the model with CLIP.")
