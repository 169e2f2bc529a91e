"""Rich-context layout-to-image at 512: SDXL that reads a sentence for each box, from raw data to a registered model.

``make run`` runs it here with the profile ``laptop`` (a twin of a few million parameters on real handwritten
digits); ``make compile`` writes the Kubeflow pipeline. Its parameters and steps are those of ``_rich_context``.
"""

from pipelines import _rich_context

RECIPE = "rich_context"

CHOICES = _rich_context.CHOICES
pipeline = _rich_context.rich_context(
    RECIPE,
    name="rich-context-512",
    description="Rich-context at 512 px: pictures with what each box's sentence describes.",
    title="Rich-context, 512 px",
    own_name="rich-context",
)
