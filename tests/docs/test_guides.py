"""The commands of the guides on weights and graphs, each run as it stands among files such as it names."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import save_file

from support.compose import ROOT
from support.documents import blocks, commands, text_of
from support.foreign import classifier
from support.onnx_zoo import LIGHT
from vistazo_export.presets.torchvision_import import torchvision_models
from vistazo_export.publishing.manifest import read_manifest

pytestmark = pytest.mark.slow

OWN = ROOT / "docs" / "guides" / "own-weights.md"
IMPORTED = ROOT / "docs" / "guides" / "imported-models.md"
EVALUATE = ROOT / "docs" / "guides" / "evaluate.md"

DOWNLOADED = ("ResNet50_Weights.IMAGENET1K_V1", "https://mirror.example/torch", "timm:resnet50.a1_in1k")
"""What names these needs the hosts of published weights; their ways are tested in tests/export/networks."""

LARGE = ("inception_v3", "resnet50")
"""To verify these as well takes as long as all the others do."""

BIRDS = ("robin", "wren", "heron")


def needs_download(line: str) -> bool:
    """Say whether published weights are asked for, not only their preprocessing."""
    return any(name in line for name in DOWNLOADED) and "--preprocess" not in line


COMMANDS = [
    line
    for guide in (OWN, IMPORTED)
    for line in commands(guide)
    if line.startswith(("vistazo export", "vistazo import")) and not needs_download(line)
]


def network(name: str) -> torch.nn.Module:
    """Return a network of three classes with random numbers, a small one for a function of one's own."""
    torch.manual_seed(5)
    if name.startswith("timm:"):
        models = torchvision_models()  # first, as timm would fail to import it
        assert models
        import timm

        return timm.create_model(name.removeprefix("timm:"), num_classes=len(BIRDS))
    options = {"init_weights": True, "transform_input": False} if name == "inception_v3" else {}
    return torchvision_models().get_model(
        "squeezenet1_1" if ":" in name else name, num_classes=len(BIRDS), **options
    )


def write_files(folder: Path, line: str) -> None:
    """Write what a command names: small files of the kinds that the guide tells of."""
    words = shlex.split(line)
    for name in ("birds.txt", "tags.txt"):
        (folder / name).write_text("\n".join(BIRDS) + "\n", encoding="utf-8")
    (folder / "labels.txt").write_text("ham\nspam\n", encoding="utf-8")
    for name in ("birds.toml", "tags.toml", "spam.toml"):
        (folder / name).write_text(blocks(OWN, "toml")[0], encoding="utf-8")
    if words[1] == "export":
        state = network(words[2]).state_dict()
        torch.save(state, folder / "birds.pth")
        torch.save(state, folder / "tags.pth")
        save_file({key: value.contiguous() for key, value in state.items()}, folder / "birds.safetensors")
        averaged = {key: value * 0.5 if value.is_floating_point() else value for key, value in state.items()}
        projector = {"projector.0.weight": torch.ones(3)}
        torch.save({"model": state | projector, "ema": averaged | projector}, folder / "run.ckpt")
        (folder / "birds").mkdir()
        (folder / "birds" / "network.py").write_text(
            "from vistazo_export.presets.torchvision_import import torchvision_models\n\n\n"
            "def bare():\n    return torchvision_models().get_model('squeezenet1_1', num_classes=3)\n\n\n"
            "trained = bare\n",
            encoding="utf-8",
        )
        # The file of the guide leaves the crop to the network; a function of one's own has none.
        if words[2] == "birds.network:trained":
            with (folder / "birds.toml").open("a", encoding="utf-8") as file:
                file.write("crop_height = 224\ncrop_width = 224\n")
        return
    shutil.copyfile(LIGHT / "light_squeezenet.onnx", folder / "squeezenet.onnx")
    graph = classifier(size=(224, 224), classes=len(BIRDS))
    onnx.save(graph, folder / "birds.onnx")
    onnx.save(graph, folder / "tags.onnx")
    onnx.save(classifier(size=(224, 224), classes=1, ending="Sigmoid"), folder / "spam.onnx")
    onnx.save(classifier(dtype=TensorProto.FLOAT), folder / "scores.onnx")
    hub = folder / "vit-base-patch16-224"
    (hub / "onnx").mkdir(parents=True)
    onnx.save(graph, hub / "onnx" / "model.onnx")
    (hub / "config.json").write_text(json.dumps({"id2label": dict(enumerate(BIRDS))}), encoding="utf-8")
    (hub / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}),
        encoding="utf-8",
    )


def vistazo(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).parent / "vistazo"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.timeout(700)
@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: " ".join(line.split()[:3]))
def test_a_command_of_the_guides_does_what_it_says(tmp_path: Path, line: str):
    write_files(tmp_path, line)
    done = vistazo(*shlex.split(line)[1:], folder=tmp_path)

    assert done.returncode == 0, done.stderr
    (model,) = [folder for folder in (tmp_path / "models").iterdir() if (folder / "1").is_dir()]
    manifest = read_manifest(model / "1" / "manifest.json")
    if "birds.txt" in line or "tags.txt" in line or "vit-base" in line:
        assert tuple(manifest.labels) == BIRDS
    if "labels.txt" in line:
        assert (tuple(manifest.labels), manifest.output.binary) == (("ham", "spam"), True)
    assert ("preprocessing: " in done.stderr) == ("--preprocess none" not in line)
    if not any(large in line for large in LARGE):
        checked = vistazo("verify", "models", folder=tmp_path)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.timeout(300)
def test_the_first_try_of_the_guide_on_evaluation_gives_its_figures(tmp_path: Path):
    tried = [line for line in commands(EVALUATE) if "digits" in line or line.startswith("vistazo export")]
    assert len(tried) == 4
    for line in tried:
        program, *arguments = shlex.split(line)
        command = [str(Path(sys.executable).parent / program), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))

    text = text_of(EVALUATE)
    top1 = [f"{each['metrics']['top1']['value']:.1%} (" for each in (found, found["baseline"])]
    assert f"| top-1, of 450 digits | {top1[0]}" in text
    assert f" | {top1[1]}" in text
    assert f"They answer {found['baseline']['comparison']['agreement']['hits']} of the 450 digits" in text
    assert (tmp_path / "report.html").stat().st_size > 100_000


def test_every_command_of_the_guides_is_run_or_needs_a_download():
    told = [
        line
        for guide in (OWN, IMPORTED)
        for line in commands(guide)
        if line.startswith(("vistazo export", "vistazo import"))
    ]
    left_out = [line for line in told if line not in COMMANDS]

    assert len(left_out) == len(DOWNLOADED)
    assert all(any(name in line for name in DOWNLOADED) for line in left_out)
