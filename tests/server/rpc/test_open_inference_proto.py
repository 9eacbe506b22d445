"""Our open_inference.proto is wire-compatible with the published protocol, as tritonclient carries it."""

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2

from vistazo_proto import open_inference_pb2

# Our stubs and tritonclient's have the same names and cannot be loaded in one process.
PUBLISHED = """
import sys
from tritonclient.grpc import model_config_pb2, service_pb2
from google.protobuf import descriptor_pb2
files = descriptor_pb2.FileDescriptorSet()
for module in (model_config_pb2, service_pb2):
    module.DESCRIPTOR.CopyToProto(files.file.add())
sys.stdout.buffer.write(files.SerializeToString())
"""

# These are filled in by the server alone: fields that it never sets may be left out.
MAY_LACK_FIELDS = {"ModelConfig", "ModelInstanceGroup", "ModelSequenceBatching", "ModelEnsembling"}


def messages(files: list[descriptor_pb2.FileDescriptorProto]) -> dict[str, descriptor_pb2.DescriptorProto]:
    """Return every message of the files, nested ones under their dotted names."""
    found = {}

    def enter(message: descriptor_pb2.DescriptorProto, name: str) -> None:
        found[name] = message
        for nested in message.nested_type:
            enter(nested, f"{name}.{nested.name}")

    for file in files:
        for message in file.message_type:
            enter(message, message.name)
    return found


def enums(files: list[descriptor_pb2.FileDescriptorProto]) -> dict[str, dict[str, int]]:
    """Return the values of every enum, nested ones under their dotted names."""
    found = {enum.name: enum for file in files for enum in file.enum_type}
    for name, message in messages(files).items():
        found |= {f"{name}.{enum.name}": enum for enum in message.enum_type}
    return {name: {value.name: value.number for value in enum.value} for name, enum in found.items()}


def fields(message: descriptor_pb2.DescriptorProto) -> dict[int, tuple[object, ...]]:
    """Return what decides about the bytes of each field, by its number."""
    return {
        field.number: (
            field.name,
            field.type,
            field.label,
            field.type_name,
            message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None,
        )
        for field in message.field
    }


def signatures(service: descriptor_pb2.ServiceDescriptorProto) -> dict[str, tuple[object, ...]]:
    """Return what each RPC takes and gives, by its name."""
    return {
        rpc.name: (rpc.input_type, rpc.output_type, rpc.client_streaming, rpc.server_streaming)
        for rpc in service.method
    }


@pytest.fixture(scope="module")
def published() -> list[descriptor_pb2.FileDescriptorProto]:
    """The published files."""
    ran = subprocess.run([sys.executable, "-c", PUBLISHED], check=True, capture_output=True, timeout=60)
    return list(descriptor_pb2.FileDescriptorSet.FromString(ran.stdout).file)


@pytest.fixture(scope="module")
def ours() -> descriptor_pb2.FileDescriptorProto:
    """Our file."""
    file = descriptor_pb2.FileDescriptorProto()
    open_inference_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def test_the_service_has_the_published_rpcs(published, ours):
    (theirs,) = [service for file in published for service in file.service]

    assert (ours.package, ours.service[0].name) == ("inference", theirs.name)
    assert signatures(ours.service[0]) == signatures(theirs)


def test_every_message_has_the_published_fields(published, ours):
    theirs = messages(published)

    for name, message in messages([ours]).items():
        mine, published_fields = fields(message), fields(theirs[name])
        if name in MAY_LACK_FIELDS:
            published_fields = {number: field for number, field in published_fields.items() if number in mine}
        assert mine == published_fields, name


def test_every_message_of_the_service_is_declared(published, ours):
    service_file = messages([file for file in published if file.service])

    assert service_file.keys() <= messages([ours]).keys()


def test_every_enum_has_the_published_values(published, ours):
    theirs = enums(published)

    assert {name: theirs[name] for name in enums([ours])} == enums([ours])
