"""Networks that a function of the user's makes, as `package.module:function`."""

import hashlib
import importlib
import re
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from vistazo_export.errors import GraphError, UnknownNetworkError
from vistazo_export.presets.preset import Preset

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

# Enough to tell a batch from one sample.
PROBED_BATCH = 2


def is_own_code(architecture: str) -> bool:
    """Say whether a name is that of a function."""
    return NAME.fullmatch(architecture) is not None and not architecture.startswith("timm:")


def call(architecture: str) -> nn.Module:
    """Return the module that the function gives, on the CPU in float32; it is called without arguments.

    It is looked for as `python` would, from the folder where the command runs. Raises UnknownNetworkError.
    """
    module_name, _, name = architecture.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), name)
        made = function()
    # Whatever their code raises, it is theirs.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UnknownNetworkError(f"{architecture}: {type(error).__name__}: {reason}") from error
    finally:
        sys.path.remove(here)
    if not isinstance(made, nn.Module):
        raise UnknownNetworkError(f"{architecture} gives a {type(made).__name__}, not a torch.nn.Module")
    return made.cpu().float()


def check_logits(module: nn.Module, architecture: str, preset: Preset, classes: int) -> None:
    """Raise GraphError where the module does not give one row of `classes` numbers for each image."""
    images = torch.zeros(PROBED_BATCH, preset.channels, preset.height, preset.width)
    try:
        with torch.inference_mode():
            answer = module(images)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise GraphError(
            f"{architecture} cannot be run on images of {preset.channels}×{preset.height}×{preset.width}: "
            + reason
        ) from error
    if not isinstance(answer, Tensor):
        raise GraphError(
            f"{architecture} answers with a {type(answer).__name__}; let the function give a module that "
            "answers with the logits alone"
        )
    if tuple(answer.shape) != (PROBED_BATCH, classes):
        raise GraphError(
            f"{architecture} answers {PROBED_BATCH} images with {'×'.join(map(str, answer.shape))} numbers, "
            f"and there are {classes} labels"
        )


def digest_of(module: nn.Module) -> str:
    """Return a SHA-256 of the module's numbers, since they are in no file."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
