"""A user's own weights: reading the file and fitting its keys to a network."""

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vistazo_export.errors import WeightsError

WRAPPINGS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts file the state dict inside a checkpoint."""

PREFIXES = ("module.", "backbone.", "model.")
"""What wrappers put before each key: DataParallel, detection code, Lightning."""

MOST_NAMED = 5
"""Keys of each kind that an error names before it only counts."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name in the .safetensors, .pth or .pt file at `path`.

    Pickled files are read with torch's `weights_only`, so they cannot run code. Raises WeightsError
    where the file is missing, damaged, or holds something other than a state dict.
    """
    if not path.is_file():
        raise WeightsError(f"no weights file {path}")
    content: object
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    elif path.suffix in {".pth", ".pt"}:
        content = _read_pickled(path)
    else:
        raise WeightsError(f"{path.name}: weights files end in .pth, .pt or .safetensors")
    for wrapping in WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise WeightsError(f"{path} holds no state dict (tensors by name), but {_describe(content)}")
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError  # noqa: PLC0415 - only for such files
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        loaded: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {_one_line(error)}") from error
    return loaded


def _read_pickled(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # Of a pickle protocol that torch does not write itself: what cannot be read fails anyway.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's text runs to a page and advises to switch the safety off.
        raise WeightsError(
            f"{path} is no file of plain weights: damaged, or pickled with code that is not run here"
        ) from error
    # On bytes that are no pickle its unpickler fails with whatever they led it to.
    except Exception as error:
        raise WeightsError(f"{path} is not a readable torch file: {_one_line(error)}") from error
    return content


def fit_state_dict(module: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load `state` into `module`, after dropping the prefixes that keep its keys from fitting.

    Raises WeightsError naming the keys that are missing, unexpected or of another shape; `origin`
    says whose they are. Then `module` is as it was.
    """
    expected = module.state_dict()
    fitted = _without_prefixes(state, expected)
    # Files from before torch 0.4.1 lack these counters, which play no part in inference.
    missing = [k for k in expected if k not in fitted and not k.endswith(".num_batches_tracked")]
    unexpected = [key for key in fitted if key not in expected]
    reshaped = [key for key in fitted if key in expected and fitted[key].shape != expected[key].shape]
    if not missing and not unexpected and not reshaped:
        module.load_state_dict(fitted, strict=False)
        return

    misfits = (("missing", missing), ("unexpected", unexpected))
    problems = [f"{kind} {_some(keys)}" for kind, keys in misfits if keys]
    if reshaped:
        shapes = [f"{key} {_shape(fitted[key])} for {_shape(expected[key])}" for key in reshaped]
        problems.append(f"of another shape {_some(shapes)}")
    hint = ""
    if reshaped and not missing and not unexpected:
        hint = "; if it has classes of its own, give their names with --labels FILE"
    raise WeightsError(f"{origin} does not fit the network: {'; '.join(problems)}{hint}")


def _without_prefixes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with wrappers' prefixes dropped for as long as that makes more keys fit."""

    def fitting(candidate: Iterable[str]) -> int:
        return sum(key in expected for key in candidate)

    best = dict(state)
    # Wrappers nest, as in "module.backbone."; each round may drop one layer, in view of the next.
    candidates = [best]
    for _ in PREFIXES:
        candidates = [
            {key.removeprefix(prefix): value for key, value in candidate.items()}
            for candidate in candidates
            for prefix in PREFIXES
            if any(key.startswith(prefix) for key in candidate)
        ]
        best = max([best, *candidates], key=fitting)
    return best


def _some(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {_some([str(key) for key in content])}" if content else "an empty dict"
    return f"a {type(content).__name__}"


def _one_line(error: Exception) -> str:
    """Return the first line of the error's text, cut to a readable length."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
