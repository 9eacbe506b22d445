"""A folder in the Hugging Face hub's layout: model.onnx beside what says its labels and preprocessing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistazo_export.errors import GraphError, LabelsError, UndecidedError

MODELS = ("model.onnx", "onnx/model.onnx")
"""Where the graph may be, the first that is there."""

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")

# What transformers calls a network whose classes exclude each other; where nothing is said, it is meant.
SINGLE_LABEL = "single_label_classification"
# And one whose classes do not; its graphs end before the sigmoid.
MULTI_LABEL = "multi_label_classification"


@dataclass(frozen=True)
class HubFolder:
    """What a folder says of its graph; the options of the import come before it."""

    model: Path
    preprocess: str
    """As --preprocess takes it; empty: the folder does not say."""
    labels: tuple[str, ...]
    """One for each class, in index order; empty: the folder does not say."""
    problem_type: str
    """transformers' name of the task; empty: the folder does not say."""

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may show any number of the classes."""
        return self.problem_type == MULTI_LABEL


def read_hub_folder(folder: Path) -> HubFolder:
    """Return what is in `folder`.

    Raises GraphError where it has no graph, LabelsError for labels that are not one a class, and
    UndecidedError for a file that cannot be read.
    """
    model = next((folder / name for name in MODELS if (folder / name).is_file()), None)
    if model is None:
        others = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.onnx"))[:5]
        hint = f"; give one of its files: {', '.join(others)}" if others else ""
        raise GraphError(f"no ONNX file {folder}: the folder has neither {' nor '.join(MODELS)}{hint}")
    # Beside the graph, where that has a folder of its own, or above.
    places = (folder, model.parent)
    config = next((place / CONFIG for place in places if (place / CONFIG).is_file()), None)
    content = {} if config is None else _read(config)
    processor = next(
        (place / name for name in PROCESSORS for place in places if (place / name).is_file()), None
    )
    if processor is None and config is not None and isinstance(content.get("pretrained_cfg"), dict):
        # timm's models say it in the same file.
        processor = config
    return HubFolder(
        model=model,
        preprocess=str(processor or ""),
        labels=_labels(content, config),
        problem_type=str(content.get("problem_type") or ""),
    )


def check_classifier(folder: HubFolder) -> None:
    """Raise UndecidedError where the network's scores are not of classes."""
    if folder.problem_type not in {"", SINGLE_LABEL, MULTI_LABEL}:
        raise UndecidedError(
            f"{CONFIG} says problem_type {folder.problem_type!r}, whose scores are of no classes; if that is "
            "wrong, say --output-kind, or serve its tensors with --preprocess none"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UndecidedError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise UndecidedError(f"{path} is no table of fields")
    return content


def _labels(content: Mapping[str, Any], config: Path | None) -> tuple[str, ...]:
    """Return the labels of id2label, or of timm's label_names, in index order."""
    named, names = content.get("id2label"), content.get("label_names")
    if isinstance(named, dict) and named:
        try:
            by_index = {int(index): str(label) for index, label in named.items()}
        except ValueError as error:
            raise LabelsError(f"id2label of {config} has an index that is no number") from error
        if sorted(by_index) != list(range(len(named))):
            raise LabelsError(
                f"id2label of {config} does not number its {len(named)} classes from 0; say --labels FILE"
            )
        return tuple(by_index[index] for index in range(len(named)))
    if isinstance(names, list):
        return tuple(map(str, names))
    return ()
