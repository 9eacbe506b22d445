from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TritonConfig(_message.Message):
    __slots__ = ("platform", "backend", "default_model_filename", "max_batch_size", "output")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MODEL_FILENAME_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    platform: str
    backend: str
    default_model_filename: str
    max_batch_size: int
    output: _containers.RepeatedCompositeFieldContainer[Output]
    def __init__(self, platform: _Optional[str] = ..., backend: _Optional[str] = ..., default_model_filename: _Optional[str] = ..., max_batch_size: _Optional[int] = ..., output: _Optional[_Iterable[_Union[Output, _Mapping]]] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("name", "label_filename")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABEL_FILENAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    label_filename: str
    def __init__(self, name: _Optional[str] = ..., label_filename: _Optional[str] = ...) -> None: ...
