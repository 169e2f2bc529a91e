"""Rich-context layout-to-image at 512 on Stable Diffusion 1.5, the smaller of the two published bases.

``make run`` runs it here with the profile ``laptop`` (a twin of a few million parameters on real handwritten
digits); ``make compile`` writes the Kubeflow pipeline. Its parameters and steps are those of ``_rich_context``.
"""

from pipelines import _rich_context

RECIPE = "rich_context:sd15"

CHOICES = _rich_context.CHOICES
pipeline = _rich_context.rich_context(
    RECIPE,
    name="rich-context-sd15-512",
    description="Rich-context at 512 px on Stable Diffusion 1.5: pictures with what each box's sentence describes.",
    title="Rich-context on Stable Diffusion 1.5, 512 px",
    own_name="rich-context-sd15",
)
