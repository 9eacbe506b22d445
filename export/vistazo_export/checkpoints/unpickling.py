"""Reading pickles without building or running anything that is in them.

A pickle is a program: "import this, call it, set that". `read_pickle` follows it and writes down what it asks
for instead of doing it. Plain data comes out as itself, everything else as a `Node`. No name is looked up, no
function called, no attribute set, so what a pickle names makes no difference to what happens here.
"""

import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

MOST_STEPS = 20_000_000
"""Instructions after which a pickle is given up: enough for millions of entries and some seconds."""

DICTS = frozenset({"OrderedDict", "defaultdict", "Counter", "dict"})
"""What is a dict by another name, of `collections` or the builtins."""

_MARK = object()


class PickleError(Exception):
    """The bytes are no pickle that can be followed to its end; the text says why."""


class Bytes(Protocol):
    """What can be read from: bytes, or a file that is mapped."""

    def __len__(self) -> int:
        """Return the number of bytes."""

    def __getitem__(self, part: slice, /) -> bytes:
        """Return a part of the bytes."""

    def find(self, sub: bytes, start: int, /) -> int:
        """Return where `sub` comes next, or -1."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of something that a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Node:
    """What a pickle would have made by calling `made_by`; the call was not made."""

    made_by: Any
    """A Global as a rule; a hostile pickle may have put anything here."""
    arguments: Any = ()
    state: Any = None
    """What `__setstate__` would have been given."""
    items: dict[Any, Any] = field(default_factory=dict)
    """What would have been set by key."""
    entries: list[Any] = field(default_factory=list)
    """What would have been appended."""


@dataclass(slots=True, eq=False)
class Stored:
    """A reference to something that lies outside of the pickle, such as a tensor's numbers."""

    identity: Any


def as_mapping(value: object) -> Mapping[Any, Any] | None:
    """Return the entries of whatever is a dict, or would have been one; None of anything else."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Node):
        return None
    if value.items:
        return value.items
    if isinstance(value.made_by, Global) and value.made_by.name in DICTS:
        # Python 2 gave an OrderedDict all its entries at once.
        given = value.arguments[0] if isinstance(value.arguments, tuple) and value.arguments else ()
        pairs = [
            tuple(pair)
            for pair in (given if isinstance(given, list | tuple) else ())
            if isinstance(pair, list | tuple) and len(pair) == 2
        ]
        return {_as_key(key): entry for key, entry in pairs}
    return None


def children(value: object) -> Iterator[object]:
    """Give what lies directly inside a value, in whatever way."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Node):
        yield value.made_by
        yield value.arguments
        yield value.state
        yield from value.items.values()
        yield from value.entries


def everything_in(value: object) -> Iterator[object]:
    """Give a value and all that lies inside it, each once; nesting and cycles are harmless."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict | list | tuple | Node):
            if id(current) in seen:
                continue
            seen.add(id(current))
            waiting.extend(children(current))
        yield current


def read_pickle(data: Bytes, start: int = 0) -> tuple[Any, int]:
    """Return what the pickle at `start` describes, and where it ends. Raises PickleError."""
    reader = _Reader(data, start)
    try:
        return reader.run(), reader.position
    except (
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
    ) as error:
        # All that a program which is none leads to: a stack too short, text that is no number.
        raise PickleError("it is damaged, or no pickle") from error


def _as_key(value: object) -> object:
    """Return a value that is quick to hash: nested tuples may take forever, or exhaust the C stack."""
    if value is None or isinstance(value, str | bytes | int | float | Node | Global | Stored):
        return value
    return Node(Global("builtins", type(value).__name__), (value,))


class _Reader:
    """Follows one pickle; a stack of values, a memo, and the place in the data."""

    def __init__(self, data: Bytes, start: int) -> None:
        self.position = start
        self._data = data
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:  # noqa: ANN401 - whatever the pickle describes
        """Follow the pickle to its end and return what is then on top."""
        for _ in range(MOST_STEPS):
            code = self._take(1)
            if code == pickle.STOP:
                return self._pop()
            step = _STEPS.get(code)
            if step is None:
                raise PickleError("it is damaged, or no pickle")
            step(self)
        raise PickleError(f"it has more than {MOST_STEPS:,} instructions")

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise PickleError("it ends too early")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self.position)
        if end < 0:
            raise PickleError("it ends too early")
        line = self._data[self.position : end]
        self.position = end + 1
        return line

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return number

    def _sized(self, form: str) -> bytes:
        return self._take(self._number(form))

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:  # noqa: ANN401 - whatever lies there
        value = self._stack.pop()
        if value is _MARK:
            raise PickleError("it is damaged, or no pickle")
        return value

    def _since_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values

    def _top(self) -> Any:  # noqa: ANN401 - whatever lies there
        return self._stack[-1]

    def _remember(self, index: int) -> None:
        # A dict, so that a huge index takes no more room than a small one.
        self._memo[index] = self._top()

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Node):
            target.entries.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        # To anything else, nothing can be appended; a hostile pickle may well ask for it.

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        entries = target.items if isinstance(target, Node) else target
        if isinstance(entries, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                entries[_as_key(key)] = value

    def _call(self) -> None:
        arguments = self._pop()
        self._push(Node(self._pop(), arguments))

    def _call_with_keywords(self) -> None:
        keywords = self._pop()
        arguments = self._pop()
        self._push(Node(self._pop(), arguments, keywords))

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, Node):
            target.state = state

    def _global(self) -> None:
        module = self._line().decode()
        self._push(Global(module, self._line().decode()))

    def _stack_global(self) -> None:
        name = self._pop()
        module = self._pop()
        self._push(Global(module, name) if isinstance(name, str) and isinstance(module, str) else Node(name))

    def _instance(self) -> None:
        module = self._line().decode()
        name = self._line().decode()
        self._push(Node(Global(module, name), tuple(self._since_mark())))

    def _object(self) -> None:
        made_by, *arguments = self._since_mark()
        self._push(Node(made_by, tuple(arguments)))

    def _text_integer(self) -> None:
        line = self._line()
        self._push({b"00": False, b"01": True}.get(line, int(line.rstrip(b"L")) if line else 0))

    def _quoted(self) -> None:
        line = self._line().strip()
        self._push(line[1:-1].decode("latin-1"))

    def _dict(self) -> None:
        values = self._since_mark()
        self._push({_as_key(k): v for k, v in zip(values[::2], values[1::2], strict=True)})


def _pushing(make: Callable[[_Reader], object]) -> Callable[[_Reader], None]:
    def step(reader: _Reader) -> None:
        reader._push(make(reader))

    return step


# The class is private to this module, and the table below is its other half.
# ruff: noqa: SLF001
_STEPS: dict[bytes, Callable[[_Reader], object]] = {
    pickle.PROTO: lambda r: r._take(1),
    pickle.FRAME: lambda r: r._take(8),
    pickle.MARK: lambda r: r._push(_MARK),
    pickle.POP: lambda r: r._stack.pop(),
    pickle.POP_MARK: lambda r: r._since_mark(),
    pickle.DUP: lambda r: r._push(r._top()),
    pickle.NONE: lambda r: r._push(None),
    pickle.NEWTRUE: lambda r: r._push(True),  # noqa: FBT003 - the value itself
    pickle.NEWFALSE: lambda r: r._push(False),  # noqa: FBT003 - the value itself
    pickle.INT: _Reader._text_integer,
    pickle.LONG: _Reader._text_integer,
    pickle.FLOAT: _pushing(lambda r: float(r._line())),
    pickle.BININT: _pushing(lambda r: r._number("<i")),
    pickle.BININT1: _pushing(lambda r: r._number("<B")),
    pickle.BININT2: _pushing(lambda r: r._number("<H")),
    pickle.LONG1: _pushing(lambda r: int.from_bytes(r._sized("<B"), "little", signed=True)),
    pickle.LONG4: _pushing(lambda r: int.from_bytes(r._sized("<I"), "little", signed=True)),
    pickle.BINFLOAT: _pushing(lambda r: r._number(">d")),
    pickle.STRING: _Reader._quoted,
    pickle.BINSTRING: _pushing(lambda r: r._sized("<I").decode("latin-1")),
    pickle.SHORT_BINSTRING: _pushing(lambda r: r._sized("<B").decode("latin-1")),
    pickle.UNICODE: _pushing(lambda r: r._line().decode("raw-unicode-escape")),
    pickle.BINUNICODE: _pushing(lambda r: r._sized("<I").decode("utf-8", "surrogatepass")),
    pickle.SHORT_BINUNICODE: _pushing(lambda r: r._sized("<B").decode("utf-8", "surrogatepass")),
    pickle.BINUNICODE8: _pushing(lambda r: r._sized("<Q").decode("utf-8", "surrogatepass")),
    pickle.BINBYTES: _pushing(lambda r: r._sized("<I")),
    pickle.SHORT_BINBYTES: _pushing(lambda r: r._sized("<B")),
    pickle.BINBYTES8: _pushing(lambda r: r._sized("<Q")),
    pickle.BYTEARRAY8: _pushing(lambda r: r._sized("<Q")),
    pickle.NEXT_BUFFER: _pushing(lambda _: Node(Global("pickle", "buffer"))),
    pickle.READONLY_BUFFER: lambda r: r._top(),
    pickle.EMPTY_TUPLE: lambda r: r._push(()),
    pickle.TUPLE: _pushing(lambda r: tuple(r._since_mark())),
    pickle.TUPLE1: lambda r: r._tuple(1),
    pickle.TUPLE2: lambda r: r._tuple(2),
    pickle.TUPLE3: lambda r: r._tuple(3),
    pickle.EMPTY_LIST: lambda r: r._push([]),
    pickle.LIST: _pushing(lambda r: r._since_mark()),
    pickle.APPEND: lambda r: r._append([r._pop()]),
    pickle.APPENDS: lambda r: r._append(r._since_mark()),
    # A set would have to hash what is put into it.
    pickle.EMPTY_SET: _pushing(lambda _: Node(Global("builtins", "set"))),
    pickle.FROZENSET: _pushing(lambda r: Node(Global("builtins", "frozenset"), (r._since_mark(),))),
    pickle.ADDITEMS: lambda r: r._append(r._since_mark()),
    pickle.EMPTY_DICT: lambda r: r._push({}),
    pickle.DICT: _Reader._dict,
    pickle.SETITEM: lambda r: r._set_items([r._stack.pop(-2), r._pop()]),
    pickle.SETITEMS: lambda r: r._set_items(r._since_mark()),
    pickle.GET: _pushing(lambda r: r._memo[int(r._line())]),
    pickle.BINGET: _pushing(lambda r: r._memo[r._number("<B")]),
    pickle.LONG_BINGET: _pushing(lambda r: r._memo[r._number("<I")]),
    pickle.PUT: lambda r: r._remember(int(r._line())),
    pickle.BINPUT: lambda r: r._remember(r._number("<B")),
    pickle.LONG_BINPUT: lambda r: r._remember(r._number("<I")),
    pickle.MEMOIZE: lambda r: r._remember(len(r._memo)),
    pickle.GLOBAL: _Reader._global,
    pickle.STACK_GLOBAL: _Reader._stack_global,
    pickle.EXT1: _pushing(lambda r: Global("copyreg", f"extension {r._number('<B')}")),
    pickle.EXT2: _pushing(lambda r: Global("copyreg", f"extension {r._number('<H')}")),
    pickle.EXT4: _pushing(lambda r: Global("copyreg", f"extension {r._number('<i')}")),
    pickle.REDUCE: _Reader._call,
    pickle.NEWOBJ: _Reader._call,
    pickle.NEWOBJ_EX: _Reader._call_with_keywords,
    pickle.BUILD: _Reader._build,
    pickle.INST: _Reader._instance,
    pickle.OBJ: _Reader._object,
    pickle.PERSID: _pushing(lambda r: Stored(r._line().decode())),
    pickle.BINPERSID: _pushing(lambda r: Stored(r._pop())),
}
