"""The images that components run in, by target; a profile says at compile time where they lie (and their digests).

Locally (``kfp.local`` in subprocesses) the name is not used. It holds "python" because KFP's subprocess runner warns
of every image that does not.
"""

import functools

from kfp import dsl

#: The package and KFP are in our images: nothing is installed when a step starts.
_component = functools.partial(dsl.component, install_kfp_package=False, packages_to_install=[])

ops = _component(base_image="atelier/python-ops")
train = _component(base_image="atelier/python-train")
annotate = _component(base_image="atelier/python-annotate")
evaluate = _component(base_image="atelier/python-evaluate")
