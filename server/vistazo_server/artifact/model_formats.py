"""Names of model files, and what is to be done with those that are not served."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MODEL_FILE: Final = "model.onnx"
MANIFEST_FILE: Final = "manifest.json"
CONFIG_FILE: Final = "config.pbtxt"

# Of a folder's names, those that are looked at to say what lies there.
MOST_NAMES: Final = 1000

_TO_ONNX: Final = "convert it to ONNX"
_EXPORT: Final = (
    "make a version of it with `vistazo export --weights`, or with torch.onnx.export and `vistazo import`"
)

_OTHERS: Final = {
    ".pt": ("PyTorch", _EXPORT),
    ".pth": ("PyTorch", _EXPORT),
    ".ckpt": ("PyTorch or TensorFlow", _EXPORT),
    ".safetensors": ("weights without a graph", _EXPORT),
    "pytorch_model.bin": ("PyTorch", _EXPORT),
    ".plan": ("TensorRT", "TensorRT's plans are made from ONNX: serve that"),
    ".engine": ("TensorRT", "TensorRT's engines are made from ONNX: serve that"),
    ".trt": ("TensorRT", "TensorRT's engines are made from ONNX: serve that"),
    ".ort": ("ONNX Runtime's own format", "serve the ONNX file that it was made of"),
    "saved_model": ("TensorFlow", _TO_ONNX),
    "saved_model.pb": ("TensorFlow", _TO_ONNX),
    ".savedmodel": ("TensorFlow", _TO_ONNX),
    ".graphdef": ("TensorFlow", _TO_ONNX),
    ".tflite": ("TensorFlow Lite", _TO_ONNX),
    ".h5": ("Keras", _TO_ONNX),
    ".keras": ("Keras", _TO_ONNX),
    "model.xml": ("OpenVINO", _TO_ONNX),
    ".mlmodel": ("Core ML", _TO_ONNX),
    ".mlpackage": ("Core ML", _TO_ONNX),
    ".pkl": ("a pickle", _TO_ONNX),
    ".joblib": ("a pickle", _TO_ONNX),
    "model.py": ("Triton's Python backend", "only graphs in ONNX are served"),
}
"""By ending or whole name: what made the file, and what to do."""

# Folders that a system makes, and files that are being written or were set aside.
_CLUTTER: Final = frozenset(
    {
        "lost+found", "@eaDir", "@Recycle", "#recycle", "__MACOSX", "__pycache__", "$RECYCLE.BIN",
        "System Volume Information", "Thumbs.db", "desktop.ini",
    }
)  # fmt: skip
_UNFINISHED: Final = ("~", ".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp", ".bak")


def is_clutter(name: str) -> bool:
    """Return whether a name is hidden, a system's own, or that of a file that is not finished."""
    return name.startswith(".") or name in _CLUTTER or name.lower().endswith(_UNFINISHED)


def is_onnx(name: str) -> bool:
    """Return whether a name is that of an ONNX file."""
    return name.lower().endswith(".onnx")


def other_format(name: str) -> tuple[str, str] | None:
    """Return what made the model that a name stands for, and what to do; None: it stands for none."""
    lower = name.lower()
    return _OTHERS.get(lower) or _OTHERS.get(os.path.splitext(lower)[1])  # noqa: PTH122  a name, no path


def is_model(name: str) -> bool:
    """Return whether a name is that of a model, served or not."""
    return is_onnx(name) or other_format(name) is not None


def visible_names(folder: Path) -> list[str]:
    """Return the names in a folder that are no clutter, sorted; of very many, some. Raises OSError."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_clutter(entry.name):
                names.append(entry.name)
            if len(names) >= MOST_NAMES:
                break
    return sorted(names)


def listed(names: Iterable[str]) -> str:
    """Return names for a one-line message, three at most, whatever characters they have."""
    names = list(names)
    return ", ".join(map(printable, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def printable(name: str) -> str:
    """Return a name for a one-line message, whatever characters it has."""
    return name if name.isprintable() and len(name) <= 100 else repr(name)[1:-1][:100]
