"""A page of a .proto file, from its comments, as protoc itself reads them."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

from prose import inline, paragraphs, row, table

PROTO: Final = Path(__file__).parents[2] / "proto"

# The numbers of the fields of descriptor.proto, which a comment's path is made of.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM = 2, 3, 4
_MEMBER: Final = 2
_SYNTAX: Final = (12,)

_WIRE = FieldDescriptorProto.Type
_Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Comments:
    by_path: dict[_Path, str]

    def at(self, *path: int) -> str:
        return self.by_path.get(path, "")


def proto_page(name: str) -> str:
    """Return the services, messages and enums of `vistazo_proto/NAME.proto`."""
    file = read_proto(name)
    comments = _Comments(
        {
            tuple(location.path): (location.leading_comments or location.trailing_comments).strip()
            for location in file.source_code_info.location
        }
    )
    parts = [paragraphs(comments.at(*_SYNTAX))]
    parts += [
        part
        for at, service in enumerate(file.service)
        for part in _service(service, comments, (_FILE_SERVICE, at))
    ]
    parts.append("## Messages")
    for at, message in enumerate(file.message_type):
        parts += _message(message, comments, (_FILE_MESSAGE, at), "")
    for at, enum in enumerate(file.enum_type):
        parts += _enum(enum, comments, (_FILE_ENUM, at), "")
    return "\n\n".join(part for part in parts if part) + "\n"


def read_proto(name: str) -> FileDescriptorProto:
    """Return the file as protoc describes it, comments included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors.binpb"
        status = protoc.main(
            [
                "protoc", f"--proto_path={PROTO}", "--include_source_info", f"--descriptor_set_out={out}",
                str(PROTO / "vistazo_proto" / f"{name}.proto"),
            ]
        )  # fmt: skip
        if status != 0:
            raise RuntimeError(f"protoc ended with status {status} for {name}.proto")
        (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return file


def _service(service: ServiceDescriptorProto, comments: _Comments, path: _Path) -> Iterator[str]:
    yield f"## {service.name}"
    yield paragraphs(comments.at(*path))
    for at, rpc in enumerate(service.method):
        asks = _stream(rpc.client_streaming) + _link(rpc.input_type)
        answers = _stream(rpc.server_streaming) + _link(rpc.output_type)
        yield f"### {rpc.name} {{ #rpc-{rpc.name.lower()} }}"
        yield f"{asks} → {answers}"
        yield paragraphs(comments.at(*path, _MEMBER, at))


def _stream(streaming: bool) -> str:  # noqa: FBT001  a field of protoc's
    return "a stream of " if streaming else ""


def _message(message: DescriptorProto, comments: _Comments, path: _Path, outer: str) -> Iterator[str]:
    if message.options.map_entry:
        return
    name = f"{outer}{message.name}"
    yield f"### {name} {{ #{_anchor(name)} }}"
    yield paragraphs(comments.at(*path))
    yield _fields(message, comments, path)
    for at, nested in enumerate(message.nested_type):
        yield from _message(nested, comments, (*path, _MESSAGE_NESTED, at), f"{name}.")
    for at, enum in enumerate(message.enum_type):
        yield from _enum(enum, comments, (*path, _MESSAGE_ENUM, at), f"{name}.")


def _fields(message: DescriptorProto, comments: _Comments, path: _Path) -> str:
    if not message.field:
        return "No fields."
    rows = (
        row(
            f"`{field.name}`",
            str(field.number),
            _type(field, message),
            inline(comments.at(*path, _MESSAGE_FIELD, at)),
        )
        for at, field in enumerate(message.field)
    )
    return table("Field", "Number", "Type", "Meaning") + "".join(rows)


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    nested_types = (nested for nested in message.nested_type if field.type_name.endswith(f".{nested.name}"))
    entry = next(nested_types, None)
    if entry is not None and entry.options.map_entry:
        return f"map of {_plain_type(entry.field[0])} to {_plain_type(entry.field[1])}"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {_plain_type(field)}"
    if field.proto3_optional:
        return f"{_plain_type(field)}, optional"
    if field.HasField("oneof_index"):
        return f"{_plain_type(field)}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return _plain_type(field)


def _plain_type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return _WIRE.Name(field.type).removeprefix("TYPE_").lower()


def _enum(enum: EnumDescriptorProto, comments: _Comments, path: _Path, outer: str) -> Iterator[str]:
    name = f"{outer}{enum.name}"
    yield f"### {name} {{ #{_anchor(name)} }}"
    yield paragraphs(comments.at(*path))
    yield table("Value", "Number", "Meaning") + "".join(
        row(f"`{value.name}`", str(value.number), inline(comments.at(*path, _MEMBER, at)))
        for at, value in enumerate(enum.value)
    )


def _link(full_name: str) -> str:
    """Return a link to the place of a type such as .vistazo.v1.Image on its page."""
    parts: Sequence[str] = full_name.strip(".").split(".")
    # Packages are written in small letters, types are not.
    name = ".".join(part for part in parts if not part[0].islower() and not part.startswith("v1"))
    return f"[{name}](#{_anchor(name)})"


def _anchor(name: str) -> str:
    return f"type-{name.lower().replace('.', '-')}"
