"""CrossFlow at 256 px with CLIP and DiMR: text to image by a flow that starts from the text; the first of five models.

``make run`` runs it here with the profile ``laptop`` (a twin of under three million parameters: "a three above a seven"
drawn in real handwriting); ``make compile`` writes the Kubeflow pipeline. Its parameters and steps are those of
``_crossflow``.
"""

from pipelines import _crossflow

RECIPE = "crossflow"

CHOICES = _crossflow.CHOICES
settle = _crossflow.settle_of(RECIPE)
pipeline = _crossflow.crossflow(RECIPE, "CrossFlow at 256 px, CLIP, DiMR: pictures that flow from their text.")
