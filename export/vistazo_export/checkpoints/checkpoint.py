"""A user's own weights: reading the file and fitting its keys to a network."""

import math
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vistazo_export.checkpoints import state_dict
from vistazo_export.checkpoints.state_dict import Reading
from vistazo_export.checkpoints.torch_files import (
    ONNX_WAY,
    SAVE_AGAIN,
    Contents,
    in_memory,
    read_torch_file,
)
from vistazo_export.checkpoints.unpickling import Global, Node, as_mapping, everything_in
from vistazo_export.errors import WeightsError
from vistazo_export.progress import SILENT, Progress

WRAPPINGS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts file the state dict inside a checkpoint."""

STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to: run `git lfs pull`"),
    (b"<", "a web page or XML, not the file itself: download it again"),
    (b"{", "JSON text; give the weights file itself"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it; its network goes through ONNX and `vistazo import`"),
    (b"\x93NUMPY", f"a NumPy array; from torch, {SAVE_AGAIN}"),
)
"""How files begin that people take for weights files, and what they are."""

MOST_NAMED = 5
"""Keys of each kind that an error names before it only counts."""


RUNNERS = frozenset(
    [
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "pty",
        "commands",
        "runpy",
        "importlib",
        "imp",
        "ctypes",
        "socket",
        "shutil",
        "webbrowser",
        "code",
        "codeop",
        "multiprocessing",
        "platform",
        "pdb",
        "pip",
        "timeit",
        "cProfile",
        "profile",
        "bdb",
        "asyncio",
    ]
)
"""Modules of functions that no checkpoint needs, and that attacks by pickle call."""

EVALUATORS = frozenset({"eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint"})
"""Such functions among the builtins."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name in a published .safetensors, .pth or .pt file.

    Pickled files are read with torch's `weights_only`, so they cannot run code, and hold nothing but tensors:
    torchvision reads them after this. Raises WeightsError where the file is missing, damaged, or holds
    something other than a state dict.
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


POSITIONS = "encoder.pos_embedding"
"""Of torchvision's vision transformers: one row a patch of the image, and one for the class."""


def read_checkpoint(path: Path) -> Contents:
    """Return what a user's file holds, whatever its name: safetensors, or what `torch.save` wrote.

    Nothing in it is run or built. Raises WeightsError where it is missing, damaged or something else.
    """
    if not path.is_file():
        raise WeightsError(f"no weights file {path}")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise WeightsError(f"{path} is not a readable torch file: it is empty")
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size:
        return in_memory(_read_safetensors(path))
    for beginning, what in STRANGERS:
        if start.lstrip().startswith(beginning):
            raise WeightsError(f"{path} is {what}")
    if start[257:262] == b"ustar":
        raise WeightsError(f"{path} is no weights file, but a tar archive: unpack it first")
    try:
        contents = read_torch_file(path)
    except WeightsError as error:
        if path.suffix.lower() == ".onnx":
            raise WeightsError(f"{path} goes with `vistazo import`, not with --weights: {error}") from error
        raise
    _refuse_attacks(path, contents)
    return contents


def _refuse_attacks(path: Path, contents: Contents) -> None:
    """Raise WeightsError where the pickle names what only an attack calls.

    That is for the reader to know, not what safety rests on: nothing that a pickle names is ever called.
    """
    for part in everything_in(contents.root):
        if not isinstance(part, Global):
            continue
        module = part.module.split(".")[0]
        if module in RUNNERS or (module in {"builtins", "__builtin__"} and part.name in EVALUATORS):
            raise WeightsError(
                f"{path} is no file of plain weights: it asks to run {str(part)[:80]} when it is read. "
                "Nothing was run; do not load it elsewhere, and get the weights from another source"
            )


def fit_checkpoint(
    module: nn.Module,
    contents: Contents,
    *,
    origin: str,
    key: str = "",
    ignore: Sequence[str] = (),
    progress: Progress = SILENT,
) -> None:
    """Load into `module` those tensors of a file that are its own, and say what was chosen or left aside.

    `key`: the state dict to take, where several are in the file. `ignore`: patterns of keys that play no
    part. Raises WeightsError naming the keys that are missing, unexpected or of another shape; `origin` says
    whose they are. Then `module` is as it was.
    """
    expected = module.state_dict()
    found = in_file = state_dict.found_in(contents)
    if not found:
        raise WeightsError(
            f"{origin} holds no state dict (tensors by name), but {_what_it_is(contents.root)}"
        )
    if key:
        found = state_dict.under(in_file, key)
        if not found:
            names = [".".join(each.path) or "one at the top" for each in in_file]
            raise WeightsError(f"{origin} has no state dict {key!r}; it has {_some(names)}")
    readings = [reading for each in found for reading in state_dict.readings(each, expected, ignore=ignore)]
    chosen, others = state_dict.choose(readings)
    if not chosen.fits:
        raise WeightsError(f"{origin} does not fit the network: {_misfit(chosen, expected)}")
    if others:
        also = ", ".join(repr(reading.name) for reading in others[:MOST_NAMED])
        progress.warning(
            f"{origin}: took the state dict {chosen.name or 'at the top'!r}; {also} would fit, too: "
            "--state-dict-key KEY takes another"
        )
    if chosen.aside:
        progress.warning(
            f"{origin}: left aside, as they play no part in inference: {len(chosen.aside)} keys "
            f"({_some(chosen.aside)})"
        )
    tensors = {name: tensor.read() for name, tensor in chosen.tensors.items()}
    _check_types(tensors, expected, origin)
    _load(module, tensors, origin)


def fit_state_dict(module: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load `state` into `module`, as `fit_checkpoint` does with a file that holds nothing else."""
    fit_checkpoint(module, in_memory(state), origin=origin)


def _check_types(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str) -> None:
    """Raise WeightsError for numbers that torch would convert into others than those that were trained."""
    for name, tensor in tensors.items():
        if expected[name].is_floating_point() and (
            not tensor.is_floating_point() or tensor.element_size() < 2
        ):
            raise WeightsError(
                f"{origin}: {name} is {str(tensor.dtype).removeprefix('torch.')}, so it is quantised; "
                f"go through {ONNX_WAY}"
            )


def _load(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    fitted = OrderedDict(state)
    # Which version of their layout modules such as MNASNet's have. The file's own is not asked: what another
    # version would have changed is shapes, and these fit.
    fitted._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]  # noqa: SLF001 - torch's name
    try:
        module.load_state_dict(fitted, strict=False)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise WeightsError(f"{origin} cannot be loaded: {_one_line(error)}") from error


def _misfit(reading: Reading, expected: Mapping[str, Tensor]) -> str:
    """Return what keeps tensors from being a network's, and what can be done."""
    problems = []
    if reading.missing:
        problems.append(f"missing {_some(reading.missing)}")
    if reading.unexpected:
        problems.append(f"unexpected {_some(reading.unexpected)}")
    shapes = {name: (reading.tensors[name].shape, tuple(expected[name].shape)) for name in reading.reshaped}
    if shapes:
        said = [f"{name} {_shape(had)} for {_shape(wanted)}" for name, (had, wanted) in shapes.items()]
        problems.append(f"of another shape {_some(said)}")
    problems += [f"{name}: {why}" for name, why in list(reading.unreadable.items())[:MOST_NAMED]]
    if set(reading.reshaped) == {POSITIONS} and not reading.missing and not reading.unexpected:
        patch = expected["conv_proj.weight"].shape[-1]
        side = math.isqrt(shapes[POSITIONS][0][1] - 1) * patch
        return f"{problems[0]}; it is for images of {side}×{side}: say --builder image_size={side}"
    return "; ".join(problems) + _way_on(reading, shapes, expected)


def _way_on(
    reading: Reading,
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    expected: Mapping[str, Tensor],
) -> str:
    keys = {*reading.missing, *reading.unexpected, *reading.reshaped}
    head = list(expected)[-1].split(".")[0]
    only_head = bool(reading.tensors) and all(head in key.split(".") for key in keys)
    if shapes and not reading.missing and not reading.unexpected:
        # The first number alone differs: the head, for another number of classes.
        counts = {had[:1] for had, wanted in shapes.values() if had[1:] == wanted[1:]}
        if only_head and len(counts) == 1 and counts != {()}:
            count = counts.pop()[0]
            if count == 1:
                return "; its head has one class, which is no choice: a softmax over one score is always 1"
            return f"; its head has {count} classes: give their names with --labels FILE, one per line"
        return "; if it has classes of its own, give their names with --labels FILE"
    if only_head and keys:
        return f"; only the head ({head}) is built in another way: in your script, go through {ONNX_WAY}"
    if reading.unexpected and not reading.missing and not shapes:
        return (
            "; if answers do not depend on the unexpected ones, leave them aside with --ignore-keys PATTERN"
        )
    return ""


def _what_it_is(root: object) -> str:
    """Return what a file without tensors by name holds, and what to do."""
    for part in everything_in(root):
        state = as_mapping(part.state) if isinstance(part, Node) else None
        if state is not None and "_modules" in state and isinstance(part, Node):
            name = part.made_by if isinstance(part.made_by, Global) else "a class"
            return f"a whole pickled module ({name!s:.80}), which is code that is not run here: {SAVE_AGAIN}"
    if isinstance(root, Node):
        return f"a {root.made_by!s:.80}"
    mapping = as_mapping(root)
    return _describe(root if mapping is None else mapping)


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {_some([str(key) for key in content])}" if content else "an empty dict"
    return f"a {type(content).__name__}"


def _one_line(error: Exception) -> str:
    """Return the first line of the error's text, cut to a readable length."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
