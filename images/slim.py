"""Makes the image `ops` small: run by the image's own Python in the build.

Takes away what no step reads (tests of libraries, AWS services other than storage and sign-in) and compiles what a step
imports, not the thousands of modules that none does (pip was told not to compile).
"""

import importlib
import pkgutil
import shutil
import sysconfig
from pathlib import Path

SERVICES = {"s3", "sts", "sso", "sso-oidc", "signin"}
LAZY = (
    "boto3", "kfp.dsl.executor_main", "kubernetes.client", "kubernetes.config", "mlflow", "mlflow.tracking",
    "PIL.Image", "s3fs", "huggingface_hub", "safetensors.numpy", "yaml",
)  # fmt: skip
"""What steps import inside functions."""


def main() -> None:
    """Slims the installation that runs it."""
    site = Path(sysconfig.get_paths()["purelib"])
    for folder in [*site.rglob("tests"), *site.glob("botocore/data/*")]:
        ours = folder.is_relative_to(site / "atelier")
        if folder.is_dir() and not ours and folder.name not in SERVICES:
            shutil.rmtree(folder)
    for name in LAZY:
        importlib.import_module(name)
    import boto3

    boto3.client("s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")  # noqa: S106
    steps = importlib.import_module("atelier.steps")
    for module in pkgutil.iter_modules(steps.__path__, "atelier.steps."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # a step of another image
            print(f"{module.name}: not in this image ({error.name})")


if __name__ == "__main__":
    main()
