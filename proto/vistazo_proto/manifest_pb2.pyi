from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelManifest(_message.Message):
    __slots__ = ("format", "name", "architecture", "input", "preprocessing", "output", "labels", "weights", "precision", "opset", "max_batch_size", "parity", "model_sha256", "model_bytes", "made_with", "external_files", "one_by_one")
    class MadeWithEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    OPSET_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MADE_WITH_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_FILES_FIELD_NUMBER: _ClassVar[int]
    ONE_BY_ONE_FIELD_NUMBER: _ClassVar[int]
    format: int
    name: str
    architecture: str
    input: Input
    preprocessing: Preprocessing
    output: Output
    labels: _containers.RepeatedScalarFieldContainer[str]
    weights: Weights
    precision: str
    opset: int
    max_batch_size: int
    parity: Parity
    model_sha256: str
    model_bytes: int
    made_with: _containers.ScalarMap[str, str]
    external_files: _containers.RepeatedCompositeFieldContainer[ExternalFile]
    one_by_one: str
    def __init__(self, format: _Optional[int] = ..., name: _Optional[str] = ..., architecture: _Optional[str] = ..., input: _Optional[_Union[Input, _Mapping]] = ..., preprocessing: _Optional[_Union[Preprocessing, _Mapping]] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ..., weights: _Optional[_Union[Weights, _Mapping]] = ..., precision: _Optional[str] = ..., opset: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., parity: _Optional[_Union[Parity, _Mapping]] = ..., model_sha256: _Optional[str] = ..., model_bytes: _Optional[int] = ..., made_with: _Optional[_Mapping[str, str]] = ..., external_files: _Optional[_Iterable[_Union[ExternalFile, _Mapping]]] = ..., one_by_one: _Optional[str] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("tensor", "height", "width", "channels", "layout", "dtype")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    tensor: str
    height: int
    width: int
    channels: int
    layout: str
    dtype: str
    def __init__(self, tensor: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., layout: _Optional[str] = ..., dtype: _Optional[str] = ...) -> None: ...

class Preprocessing(_message.Message):
    __slots__ = ("resize_mode", "resize_size", "crop_height", "crop_width", "interpolation", "mean", "std", "resize_height", "resize_width", "channel_order", "value_range", "pad_color", "crop_rounding", "background")
    class ResizeMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RESIZE_MODE_UNSPECIFIED: _ClassVar[Preprocessing.ResizeMode]
        SHORTEST_EDGE: _ClassVar[Preprocessing.ResizeMode]
        STRETCH: _ClassVar[Preprocessing.ResizeMode]
        COVER: _ClassVar[Preprocessing.ResizeMode]
        FIT: _ClassVar[Preprocessing.ResizeMode]
        NO_RESIZE: _ClassVar[Preprocessing.ResizeMode]
    RESIZE_MODE_UNSPECIFIED: Preprocessing.ResizeMode
    SHORTEST_EDGE: Preprocessing.ResizeMode
    STRETCH: Preprocessing.ResizeMode
    COVER: Preprocessing.ResizeMode
    FIT: Preprocessing.ResizeMode
    NO_RESIZE: Preprocessing.ResizeMode
    class CropRounding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HALF_TO_EVEN: _ClassVar[Preprocessing.CropRounding]
        DOWN: _ClassVar[Preprocessing.CropRounding]
    HALF_TO_EVEN: Preprocessing.CropRounding
    DOWN: Preprocessing.CropRounding
    RESIZE_MODE_FIELD_NUMBER: _ClassVar[int]
    RESIZE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CROP_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    CROP_WIDTH_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    RESIZE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RESIZE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_ORDER_FIELD_NUMBER: _ClassVar[int]
    VALUE_RANGE_FIELD_NUMBER: _ClassVar[int]
    PAD_COLOR_FIELD_NUMBER: _ClassVar[int]
    CROP_ROUNDING_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    resize_mode: Preprocessing.ResizeMode
    resize_size: int
    crop_height: int
    crop_width: int
    interpolation: str
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    resize_height: int
    resize_width: int
    channel_order: str
    value_range: int
    pad_color: _containers.RepeatedScalarFieldContainer[int]
    crop_rounding: Preprocessing.CropRounding
    background: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, resize_mode: _Optional[_Union[Preprocessing.ResizeMode, str]] = ..., resize_size: _Optional[int] = ..., crop_height: _Optional[int] = ..., crop_width: _Optional[int] = ..., interpolation: _Optional[str] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ..., resize_height: _Optional[int] = ..., resize_width: _Optional[int] = ..., channel_order: _Optional[str] = ..., value_range: _Optional[int] = ..., pad_color: _Optional[_Iterable[int]] = ..., crop_rounding: _Optional[_Union[Preprocessing.CropRounding, str]] = ..., background: _Optional[_Iterable[int]] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("tensor", "kind", "classes", "binary")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Output.Kind]
        LOGITS: _ClassVar[Output.Kind]
        PROBABILITIES: _ClassVar[Output.Kind]
        INDEPENDENT: _ClassVar[Output.Kind]
        INDEPENDENT_LOGITS: _ClassVar[Output.Kind]
    KIND_UNSPECIFIED: Output.Kind
    LOGITS: Output.Kind
    PROBABILITIES: Output.Kind
    INDEPENDENT: Output.Kind
    INDEPENDENT_LOGITS: Output.Kind
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    tensor: str
    kind: Output.Kind
    classes: int
    binary: bool
    def __init__(self, tensor: _Optional[str] = ..., kind: _Optional[_Union[Output.Kind, str]] = ..., classes: _Optional[int] = ..., binary: bool = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("source", "name", "url", "sha256", "state_dict_key", "ignored_keys", "builder")
    class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SOURCE_UNSPECIFIED: _ClassVar[Weights.Source]
        PRETRAINED: _ClassVar[Weights.Source]
        CHECKPOINT: _ClassVar[Weights.Source]
        UNTRAINED: _ClassVar[Weights.Source]
        IMPORTED: _ClassVar[Weights.Source]
    SOURCE_UNSPECIFIED: Weights.Source
    PRETRAINED: Weights.Source
    CHECKPOINT: Weights.Source
    UNTRAINED: Weights.Source
    IMPORTED: Weights.Source
    class BuilderEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    STATE_DICT_KEY_FIELD_NUMBER: _ClassVar[int]
    IGNORED_KEYS_FIELD_NUMBER: _ClassVar[int]
    BUILDER_FIELD_NUMBER: _ClassVar[int]
    source: Weights.Source
    name: str
    url: str
    sha256: str
    state_dict_key: str
    ignored_keys: _containers.RepeatedScalarFieldContainer[str]
    builder: _containers.ScalarMap[str, str]
    def __init__(self, source: _Optional[_Union[Weights.Source, str]] = ..., name: _Optional[str] = ..., url: _Optional[str] = ..., sha256: _Optional[str] = ..., state_dict_key: _Optional[str] = ..., ignored_keys: _Optional[_Iterable[str]] = ..., builder: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ExternalFile(_message.Message):
    __slots__ = ("path", "bytes", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    bytes: int
    sha256: str
    def __init__(self, path: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Parity(_message.Message):
    __slots__ = ("batch_sizes", "images", "max_abs_logit_diff", "max_rel_logit_diff", "top1_agreement", "tolerance")
    BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_LOGIT_DIFF_FIELD_NUMBER: _ClassVar[int]
    MAX_REL_LOGIT_DIFF_FIELD_NUMBER: _ClassVar[int]
    TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    batch_sizes: _containers.RepeatedScalarFieldContainer[int]
    images: int
    max_abs_logit_diff: float
    max_rel_logit_diff: float
    top1_agreement: float
    tolerance: float
    def __init__(self, batch_sizes: _Optional[_Iterable[int]] = ..., images: _Optional[int] = ..., max_abs_logit_diff: _Optional[float] = ..., max_rel_logit_diff: _Optional[float] = ..., top1_agreement: _Optional[float] = ..., tolerance: _Optional[float] = ...) -> None: ...
