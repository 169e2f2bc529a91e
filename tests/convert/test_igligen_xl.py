"""IGLIGEN-XL's folder: its own pipeline code, opened where Atelier cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from atelier.convert import igligen_xl
from atelier.convert.bundle import bundle
from atelier.convert.conversion import convert
from atelier.errors import ConfigError
from atelier.models.grounded_unet import adapter_parameters, attach
from atelier.sampling.gligen_sdxl import StableDiffusionXLGLIGENPipeline
from tests.convert import tiny
from tests.recipes.twin import write_twin

CALL = {
    "prompt": ["a three and a five", "an eight"],
    "gligen_boxes": [[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 0.9, 0.9]],
    "gligen_phrases": ["a three", "a five"],
    "gligen_scheduled_sampling_beta": 0.5,
    "num_inference_steps": 4,
    "output_type": "latent",
    "height": 64,
    "width": 64,
}
STANDALONE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "atelier":
            raise ImportError("atelier is not installed here")

sys.meta_path.insert(0, Refuse())
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

folder, out, call = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
latents = pipe(**call, generator=torch.Generator().manual_seed(5)).images
plain = {name: value for name, value in call.items() if not name.startswith("gligen")}
ungrounded = pipe(**plain, generator=torch.Generator().manual_seed(5)).images
assert "atelier" not in sys.modules
save_file({"latents": latents, "ungrounded": ungrounded}, out)
print(type(pipe).__module__, type(pipe).__name__)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("igligen")
    base = write_twin(place / "base")
    torch.manual_seed(3)
    unet = attach(UNet2DConditionModel.from_pretrained(base / "unet"))
    adapter = {name: parameter.detach().clone() for name, parameter in adapter_parameters(unet).items()}
    for name, tensor in adapter.items():
        if "alpha" in name:
            tensor.fill_(0.8)
    save_file(adapter, place / "adapter.safetensors")
    made = convert(place / "adapter.safetensors", place / "folder", "igligen-xl", base=base)
    assert made.family == "SDXL"
    return place / "folder"


def test_the_folder_names_its_own_code(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_gligen_sdxl", "StableDiffusionXLGLIGENPipeline"]
    code = (folder / "pipeline_gligen_sdxl.py").read_text()
    assert "import atelier" not in code
    assert "from atelier" not in code


def test_it_samples_where_atelier_cannot_be_imported_as_here(folder: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STANDALONE, str(folder), str(tmp_path / "out.safetensors"), json.dumps(CALL)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "StableDiffusionXLGLIGENPipeline" in done.stdout
    theirs = load_file(tmp_path / "out.safetensors")
    convert(folder, tmp_path / "plain", "diffusers")  # ours, without remote code
    pipe = StableDiffusionXLGLIGENPipeline.from_pretrained(tmp_path / "plain")
    pipe.set_progress_bar_config(disable=True)
    ours = pipe(**CALL, generator=torch.Generator().manual_seed(5)).images
    torch.testing.assert_close(theirs["latents"], ours, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(theirs["latents"], theirs["ungrounded"], atol=1e-3)


def test_it_converts_back(folder: Path, tmp_path: Path) -> None:
    made = convert(folder, tmp_path / "adapter.safetensors")
    assert (made.form, made.family) == ("diffusers", "SDXL")
    original = load_file(folder.parent / "adapter.safetensors")
    found = load_file(tmp_path / "adapter.safetensors")
    assert found.keys() == original.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in original.items())
    convert(folder, tmp_path / "plain", "diffusers")
    index = json.loads((tmp_path / "plain/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert not (tmp_path / "plain/pipeline_gligen_sdxl.py").exists()


def test_it_is_for_sdxl(tmp_path: Path) -> None:
    tiny.write_base(tmp_path / "base", "SD1")
    tiny.write_unet(tmp_path / "unet", "SD1")
    with pytest.raises(ConfigError, match="for SDXL, this UNet is SD1"):
        convert(tmp_path / "unet", tmp_path / "out", "igligen-xl", base=tmp_path / "base")
    assert not (tmp_path / "out").exists()


def test_the_bundle_takes_what_is_needed_and_no_more() -> None:
    code = bundle(igligen_xl.MODULE, igligen_xl.PIPELINE, "about")
    compile(code, "bundle", "exec")
    assert "class GatedSelfAttention" in code
    assert "class TrainingError" not in code


def test_what_cannot_be_bundled_is_said() -> None:
    with pytest.raises(ValueError, match="does not define absent"):
        bundle(igligen_xl.MODULE, "absent", "")
    with pytest.raises(ValueError, match=r"imports atelier\.storage\.uri as uris"):
        bundle("atelier.storage.folder", "OutputFolder", "")


def test_two_definitions_of_one_name_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "studio"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("SIDE = 2\n\ndef area(n):\n    'Ω'\n    return n * SIDE\n")
    method = "    def size(self):\n        return 'Ω', area(SIDE), SIDE\n"
    (package / "two.py").write_text(f"from studio.one import area\n\nSIDE = 5\n\nclass Box:\n{method}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("atelier.convert.bundle.PACKAGE", "studio")
    made: dict[str, type] = {}
    exec(bundle("studio.two", "Box", "about"), made)  # noqa: S102  what the bundle is for
    assert made["Box"]().size() == ("Ω", 10, 5)
