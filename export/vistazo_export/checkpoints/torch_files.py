"""What `torch.save` wrote, told by its content: the object inside, and tensors that are read when wanted.

Both of torch's formats are read, the zip archive and the one before it, and plain pickles with tensors in
them. Nothing is unpickled: see `unpickling`. A tensor is made only after its claims proved to lie inside of
the file.
"""

import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistazo_export.checkpoints.unpickling import (
    Bytes,
    Global,
    Node,
    PickleError,
    Stored,
    as_mapping,
    everything_in,
    read_pickle,
)
from vistazo_export.errors import WeightsError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

MOST_DIMENSIONS = 64
MOST_ELEMENTS = 1 << 48

STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}

SAVE_AGAIN = 'save its state_dict() alone: torch.save(model.state_dict(), "weights.pth")'
"""What to do about a file that holds something else; the sentence around it says what."""

ONNX_WAY = 'torch.onnx.export(model.eval(), image_batch, "model.onnx") and `vistazo import model.onnx`'
"""The way for networks that cannot be rebuilt here."""


@dataclass(frozen=True)
class Location:
    """Where in the file the numbers of a storage lie."""

    start: int
    size: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet; what it claims of itself has been checked."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Contents:
    """The object in a file, as `unpickling` describes it, and the way to its tensors."""

    root: Any
    tensor: Callable[[object], StoredTensor | None]
    """Return the tensor that a part of the object describes; None where it is something else.

    Raises WeightsError where it is a tensor that cannot be read."""


def in_memory(state: Mapping[str, Tensor]) -> Contents:
    """Return tensors that are read already, such as a safetensors file's, as contents."""

    def tensor(value: object) -> StoredTensor | None:
        if not isinstance(value, Tensor):
            return None
        return StoredTensor(tuple(value.shape), value.dtype, lambda: value)

    return Contents(dict(state), tensor)


def read_torch_file(path: Path) -> Contents:
    """Return what is in a file that `torch.save` or `pickle.dump` wrote. Raises WeightsError."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        if data[:4] == b"PK\x03\x04":
            return _read_archive(path, data)
        root, storages = _read_legacy(data)
        return Contents(root, storages.tensor)
    except (PickleError, _DamagedError) as error:
        raise WeightsError(f"{path} is not a readable torch file: {error}") from error


class _DamagedError(Exception):
    """The file contradicts itself; the text says how."""


def _read_archive(path: Path, data: mmap.mmap) -> Contents:  # noqa: C901 - one refusal after the other
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
    # On bytes that are no archive, zipfile fails with whatever they led it to.
    except Exception as error:
        raise _DamagedError("it is damaged: its zip archive cannot be read") from error
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.endswith(("/constants.pkl", "/model.json")) or "/code/" in name for name in records):
        raise WeightsError(
            f"{path} is a TorchScript archive, which is a program: load it with torch.jit.load(), then "
            f"{SAVE_AGAIN}, or go through {ONNX_WAY}"
        )
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in records):
        raise WeightsError(
            f"{path} is an archive of torch.export, which is a program: load it with torch.export.load(), "
            f"then {SAVE_AGAIN}, or go through {ONNX_WAY}"
        )
    if not pickles:
        some = ", ".join(list(records)[:3]) or "nothing"
        raise WeightsError(
            f"{path} is a zip archive that torch.save did not write; it holds {some}. If the weights are a "
            "file inside of it, unpack that"
        )
    folder = pickles[0].removesuffix("data.pkl")

    def locate(name: str) -> Location:
        info = records.get(name)
        if info is None:
            raise _DamagedError(f"it has no record {name}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise _DamagedError(f"its record {name} is compressed; torch.save does not do that")
        header = data[info.header_offset : info.header_offset + 30]
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise _DamagedError(f"its record {name} is not where the archive says")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if start + info.file_size > len(data):
            raise _DamagedError("it ends too early")
        return Location(start, info.file_size)

    pickled = locate(pickles[0])
    root, _ = read_pickle(data[pickled.start : pickled.start + pickled.size])
    swapped = False
    if f"{folder}byteorder" in records:
        order = locate(f"{folder}byteorder")
        swapped = data[order.start : order.start + order.size] == b"big"
    storages = _Storages(data, lambda key: locate(f"{folder}data/{key}"), swapped=swapped)
    return Contents(root, storages.tensor)


def _read_legacy(data: Bytes) -> "tuple[object, _Storages]":
    """Read torch's format from before 1.6, or any plain pickle."""
    root, end = read_pickle(data)
    if root != LEGACY_MAGIC:
        return root, _Storages(data, _no_storage)
    protocol, end = read_pickle(data, end)
    if protocol != LEGACY_PROTOCOL:
        raise _DamagedError(f"it has format {protocol!s:.20}, which no torch has written")
    _, end = read_pickle(data, end)
    root, end = read_pickle(data, end)
    keys, end = read_pickle(data, end)
    widths = {}
    for part in everything_in(root):
        if isinstance(part, Stored):
            with suppress(_DamagedError):
                storage = _storage_of(part)
                widths[storage.key] = storage.dtype.itemsize
    places: dict[str, Location] = {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in widths:
            raise _DamagedError("it has storages that no tensor names")
        count = int.from_bytes(data[end : end + 8], "little")
        places[key] = Location(end + 8, count * widths[key])
        end += 8 + count * widths[key]
        if end > len(data):
            raise _DamagedError("it ends too early")

    def locate(key: str) -> Location:
        if key not in places:
            raise _DamagedError(f"it has no storage {key:.40}")
        return places[key]

    return root, _Storages(data, locate)


def _no_storage(_key: str) -> Location:
    raise _DamagedError("its tensors point to numbers that are not in the file")


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    offset: int = 0
    """In elements, where one storage is a part of another."""


def _storage_of(value: object) -> _Storage:
    """Return what a reference to a storage says."""
    match value:
        case Stored(("storage", Global(_, kind), str(key), *_, view)) if kind in STORAGE_TYPES:
            offset = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
            return _Storage(key, STORAGE_TYPES[kind], offset if isinstance(offset, int) else 0)
    raise _DamagedError("it has a tensor whose numbers are of an unknown kind")


class _Storages:
    """The storages of one file; each is read once, when a tensor wants it."""

    def __init__(self, data: Bytes, locate: Callable[[str], Location], *, swapped: bool = False) -> None:
        self._data = data
        self._locate = locate
        self._swapped = swapped
        self._read: dict[str, torch.UntypedStorage] = {}

    def tensor(self, value: object) -> StoredTensor | None:
        """Return the tensor that a node describes; None where it is something else."""
        try:
            return self._tensor(value)
        except _DamagedError as error:
            raise WeightsError(f"a tensor in the weights file cannot be read: {error}") from error

    def _tensor(self, value: object, depth: int = 0) -> StoredTensor | None:  # noqa: PLR0911 - one for each way
        if not isinstance(value, Node) or not isinstance(value.made_by, Global) or depth > 4:
            return None
        arguments = value.arguments
        match (value.made_by.module, value.made_by.name, arguments):
            case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", (inner, *_):
                return self._tensor(inner, depth + 1)
            case "torch._tensor", "_rebuild_from_type_v2", (rebuild, _, tuple(inner), *_):
                return self._tensor(Node(rebuild, inner), depth + 1)
            case "torch._utils", "_rebuild_tensor", (storage, offset, size, stride):
                return self._described(storage, None, offset, size, stride)
            case "torch._utils", "_rebuild_tensor_v2", (storage, offset, size, stride, *rest):
                return self._described(storage, None, offset, size, stride, *rest[2:])
            case "torch._utils", "_rebuild_tensor_v3", (storage, offset, size, stride, _, _, kind, *rest):
                return self._described(storage, kind, offset, size, stride, *rest)
            case "torch._utils", str(name), _ if name.startswith("_rebuild_"):
                raise _DamagedError(f"it is no plain tensor, but made by {name}")
        return None

    def _described(
        self, storage: object, kind: object, offset: object, size: object, stride: object, *bits: object
    ) -> StoredTensor:
        """Return a tensor whose claims have been checked against its storage."""
        if any(as_mapping(bit) for bit in bits):
            raise _DamagedError("it is a conjugated or negated view")
        nested = _nested(storage)
        if nested is not None:
            return nested[1]._view(nested[0], kind, offset, size, stride)  # noqa: SLF001 - of the same class
        return self._view(storage, kind, offset, size, stride)

    def _view(
        self, storage: object, kind: object, offset: object, size: object, stride: object
    ) -> StoredTensor:
        named = _storage_of(storage)
        dtype = named.dtype
        if kind is not None:
            # vars, as torch's own getattr imports what is asked for.
            found = (
                vars(torch).get(kind.name) if isinstance(kind, Global) and kind.module == "torch" else None
            )
            if not isinstance(found, torch.dtype):
                raise _DamagedError("its numbers are of an unknown kind")
            dtype = found
        shape, steps, first = _whole(size), _whole(stride), _whole([offset])[0] + named.offset
        if len(shape) != len(steps) or len(shape) > MOST_DIMENSIONS or math.prod(shape) > MOST_ELEMENTS:
            raise _DamagedError("its shape makes no sense")
        location = self._locate(named.key)
        last = first + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
        if 0 not in shape and (last + 1) * dtype.itemsize > location.size:
            raise _DamagedError("it claims more numbers than the file has")

        def read() -> Tensor:
            if 0 in shape:
                return torch.empty(shape, dtype=dtype)
            whole = self._storage(named, location)
            return torch.empty(0, dtype=dtype).set_(whole, first, shape, steps)

        return StoredTensor(shape, dtype, read)

    def _storage(self, named: _Storage, location: Location) -> torch.UntypedStorage:
        if named.key not in self._read:
            numbers = bytearray(self._data[location.start : location.start + location.size])
            storage = torch.frombuffer(numbers, dtype=torch.uint8).untyped_storage()
            if self._swapped:
                storage.byteswap(named.dtype)  # type: ignore[no-untyped-call]
            self._read[named.key] = storage
        return self._read[named.key]


def _nested(storage: object) -> "tuple[object, _Storages] | None":
    """Return the storage that `pickle.dump` put into the pickle as a small torch file of its own."""
    match storage:
        case Node(Global("torch.storage", "_load_from_bytes"), (bytes(data),)):
            return _read_legacy(data)
    return None


def _whole(numbers: object) -> tuple[int, ...]:
    """Return whole numbers from 0 up, whatever sequence they came in."""
    if isinstance(numbers, Node) and isinstance(numbers.made_by, Global) and numbers.made_by.name == "Size":
        numbers = numbers.arguments[0] if isinstance(numbers.arguments, tuple) and numbers.arguments else ()
    if not isinstance(numbers, list | tuple):
        raise _DamagedError("its shape makes no sense")
    if not all(type(number) is int and 0 <= number < MOST_ELEMENTS for number in numbers):
        raise _DamagedError("its shape makes no sense")
    return tuple(numbers)
