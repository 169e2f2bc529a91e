"""The images that components run in; locally (``kfp.local`` in subprocesses) the name is not used.

``ATELIER_IMAGES`` (a registry and folder) and ``ATELIER_IMAGE_TAG`` choose others at compile time. The names hold
"python" because KFP's subprocess runner warns of every image that does not.
"""

import functools
import os
from importlib.metadata import version

from kfp import dsl

_PREFIX = os.environ.get("ATELIER_IMAGES", "atelier").rstrip("/")
_TAG = os.environ.get("ATELIER_IMAGE_TAG") or version("atelier")


def image(target: str) -> str:
    """The reference of the image ``target`` (ops, train, annotate, evaluate)."""
    return f"{_PREFIX}/python-{target}:{_TAG}"


#: The package and KFP are in our images: nothing is installed when a step starts.
_component = functools.partial(dsl.component, install_kfp_package=False, packages_to_install=[])

ops = _component(base_image=image("ops"))
train = _component(base_image=image("train"))
annotate = _component(base_image=image("annotate"))
evaluate = _component(base_image=image("evaluate"))
