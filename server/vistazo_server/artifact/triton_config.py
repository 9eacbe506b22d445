"""Reading Triton's config.pbtxt, of a model that has no manifest to say the same."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from google.protobuf import text_format

from vistazo_proto import triton_config_pb2
from vistazo_server.artifact.text_files import FileUnreadableError, read_text
from vistazo_server.errors import one_line

# Triton's own are of a few kB. They are parsed in Python, which takes 0.3 s for so much.
MOST_BYTES: Final = 256 << 10

# What a file system allows, and less than what makes a path too long.
_MOST_NAME_BYTES: Final = 255
_MOST_PATH_CHARACTERS: Final = 1000

# What Triton calls graphs in ONNX that ONNX Runtime runs.
PLATFORM: Final = "onnxruntime_onnx"
BACKEND: Final = "onnxruntime"

# A list needs no colon before it. Of a field that is not known protobuf can only skip one that has it.
_LIST: Final = re.compile(
    r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\#[^\n]*)|(?<=\w)(\s*)(?=\[)""",
)


class ConfigError(Exception):
    """A config.pbtxt that cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """What a config.pbtxt says of a graph."""

    runs_elsewhere: str = ""
    """Its platform or backend, as it says it, where that is not ONNX Runtime's."""
    model_file: str = ""
    """Relative to the version's folder, as it says it; empty: not said."""
    max_batch_size: int = 0
    """0: not said, or that Triton makes no batches. Any number."""
    label_files: tuple[tuple[str, str], ...] = ()
    """Outputs and the files of their labels, relative to the model's folder, as it says them."""


def read_triton_config(path: Path) -> TritonConfig:
    """Return what the file says; nothing where there is none. Raises ConfigError.

    Fields that say nothing of a graph's files and batches are skipped, whether Triton knows them or not.
    """
    try:
        text = read_text(path, most_bytes=MOST_BYTES)
        config = text_format.Parse(
            _LIST.sub(lambda found: found[1] or f":{found[2]}", text),
            triton_config_pb2.TritonConfig(),
            allow_unknown_field=True,
        )
    except FileNotFoundError:
        return TritonConfig()
    except FileUnreadableError as error:
        raise ConfigError(str(error)) from None
    except RecursionError:
        raise ConfigError(f"{path} cannot be read: it is nested too deep") from None
    except (text_format.ParseError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(error, characters=200)}") from None
    return TritonConfig(
        runs_elsewhere=_runs_elsewhere(config),
        model_file=config.default_model_filename,
        max_batch_size=config.max_batch_size,
        label_files=tuple(
            (output.name, output.label_filename) for output in config.output if output.label_filename
        ),
    )


def _runs_elsewhere(config: triton_config_pb2.TritonConfig) -> str:
    if config.backend not in {"", BACKEND}:
        return f"backend {config.backend!r}"
    return f"platform {config.platform!r}" if config.platform not in {"", PLATFORM} else ""


def is_inside(path: str) -> bool:
    """Return whether a path can be one of a file below the folder that it is relative to."""
    parts = PurePosixPath(path).parts
    can_be_names = "\0" not in path and all(len(part.encode()) <= _MOST_NAME_BYTES for part in parts)
    is_below = bool(parts) and not PurePosixPath(path).is_absolute() and ".." not in parts
    return is_below and can_be_names and len(path) <= _MOST_PATH_CHARACTERS
