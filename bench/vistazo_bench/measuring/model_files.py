"""What a model's folder says: which version is the highest, and how its images are prepared."""

import json
from pathlib import Path

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.limits import DecodeSpec


def model_folder(repository: Path, name: str) -> Path:
    """Return the folder of the model's highest version. Raises BenchError when there is none."""
    versions = [path for path in (repository / name).glob("*") if path.name.isdecimal()]
    found = [path for path in versions if (path / "model.onnx").is_file()]
    if not found:
        raise BenchError(f"no {name}/VERSION/model.onnx in {repository}")
    return max(found, key=lambda path: int(path.name))


def decode_spec(folder: Path) -> DecodeSpec:
    """Return what the manifest in a model's folder says about preprocessing. Raises BenchError."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        steps, given = manifest["preprocessing"], manifest["input"]
        shortest = steps.get("resize_mode") != "STRETCH"
        return DecodeSpec(
            height=int(given["height"]),
            width=int(given["width"]),
            channels=int(given["channels"]),
            resize_size=int(steps["resize_size"]) if shortest else 0,
            interpolation=str(steps["interpolation"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{folder / 'manifest.json'} cannot be read: {error!r}") from error
