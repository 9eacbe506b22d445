from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_KIND_UNSPECIFIED: _ClassVar[ScoreKind]
    LOGITS: _ClassVar[ScoreKind]
    PROBABILITIES: _ClassVar[ScoreKind]
    INDEPENDENT: _ClassVar[ScoreKind]
    INDEPENDENT_LOGITS: _ClassVar[ScoreKind]

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    LOADING: _ClassVar[State]
    READY: _ClassVar[State]
    FAILED: _ClassVar[State]
    UNLOADING: _ClassVar[State]
SCORE_KIND_UNSPECIFIED: ScoreKind
LOGITS: ScoreKind
PROBABILITIES: ScoreKind
INDEPENDENT: ScoreKind
INDEPENDENT_LOGITS: ScoreKind
STATE_UNSPECIFIED: State
LOADING: State
READY: State
FAILED: State
UNLOADING: State

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "version", "images", "top_k", "min_probability", "prepared_as")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    PREPARED_AS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    images: _containers.RepeatedCompositeFieldContainer[Image]
    top_k: int
    min_probability: float
    prepared_as: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., top_k: _Optional[int] = ..., min_probability: _Optional[float] = ..., prepared_as: _Optional[str] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("encoded", "raw")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawPixels
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawPixels, _Mapping]] = ...) -> None: ...

class RawPixels(_message.Message):
    __slots__ = ("data", "height", "width", "channels")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    height: int
    width: int
    channels: int
    def __init__(self, data: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("model", "version", "results", "batch_size", "timing")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    results: _containers.RepeatedCompositeFieldContainer[ImageResult]
    batch_size: int
    timing: Timing
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., results: _Optional[_Iterable[_Union[ImageResult, _Mapping]]] = ..., batch_size: _Optional[int] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class ImageResult(_message.Message):
    __slots__ = ("predictions", "error")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    predictions: Predictions
    error: ImageError
    def __init__(self, predictions: _Optional[_Union[Predictions, _Mapping]] = ..., error: _Optional[_Union[ImageError, _Mapping]] = ...) -> None: ...

class Predictions(_message.Message):
    __slots__ = ("predictions",)
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("index", "label", "probability")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    probability: float
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class ImageError(_message.Message):
    __slots__ = ("code", "message", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_seconds", "preprocess_seconds", "compute_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    preprocess_seconds: float
    compute_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., preprocess_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ...) -> None: ...

class ClassifyStreamRequest(_message.Message):
    __slots__ = ("id", "request", "timeout_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: ClassifyRequest
    timeout_ms: int
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[ClassifyRequest, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class ClassifyStreamResponse(_message.Message):
    __slots__ = ("id", "response", "error", "retry_pushback_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RETRY_PUSHBACK_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: ClassifyResponse
    error: ImageError
    retry_pushback_ms: int
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., error: _Optional[_Union[ImageError, _Mapping]] = ..., retry_pushback_ms: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "state", "reason", "input_height", "input_width", "input_channels", "labels", "weights", "precision", "max_batch_size", "device", "latencies", "scores", "one_by_one", "preprocessing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    INPUT_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    INPUT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    INPUT_CHANNELS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LATENCIES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ONE_BY_ONE_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    state: State
    reason: str
    input_height: int
    input_width: int
    input_channels: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    weights: str
    precision: str
    max_batch_size: int
    device: str
    latencies: _containers.RepeatedCompositeFieldContainer[BatchLatency]
    scores: ScoreKind
    one_by_one: str
    preprocessing: Preprocessing
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Union[State, str]] = ..., reason: _Optional[str] = ..., input_height: _Optional[int] = ..., input_width: _Optional[int] = ..., input_channels: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., weights: _Optional[str] = ..., precision: _Optional[str] = ..., max_batch_size: _Optional[int] = ..., device: _Optional[str] = ..., latencies: _Optional[_Iterable[_Union[BatchLatency, _Mapping]]] = ..., scores: _Optional[_Union[ScoreKind, str]] = ..., one_by_one: _Optional[str] = ..., preprocessing: _Optional[_Union[Preprocessing, _Mapping]] = ...) -> None: ...

class Preprocessing(_message.Message):
    __slots__ = ("resize_mode", "resize_size", "resize_height", "resize_width", "interpolation", "pad_color", "background", "crop_rounding", "jpeg_decoding", "id")
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
    class JpegDecoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        JPEG_DECODING_UNSPECIFIED: _ClassVar[Preprocessing.JpegDecoding]
        EXACT: _ClassVar[Preprocessing.JpegDecoding]
        REDUCED: _ClassVar[Preprocessing.JpegDecoding]
    JPEG_DECODING_UNSPECIFIED: Preprocessing.JpegDecoding
    EXACT: Preprocessing.JpegDecoding
    REDUCED: Preprocessing.JpegDecoding
    RESIZE_MODE_FIELD_NUMBER: _ClassVar[int]
    RESIZE_SIZE_FIELD_NUMBER: _ClassVar[int]
    RESIZE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RESIZE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    PAD_COLOR_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    CROP_ROUNDING_FIELD_NUMBER: _ClassVar[int]
    JPEG_DECODING_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    resize_mode: Preprocessing.ResizeMode
    resize_size: int
    resize_height: int
    resize_width: int
    interpolation: str
    pad_color: _containers.RepeatedScalarFieldContainer[int]
    background: _containers.RepeatedScalarFieldContainer[int]
    crop_rounding: Preprocessing.CropRounding
    jpeg_decoding: Preprocessing.JpegDecoding
    id: str
    def __init__(self, resize_mode: _Optional[_Union[Preprocessing.ResizeMode, str]] = ..., resize_size: _Optional[int] = ..., resize_height: _Optional[int] = ..., resize_width: _Optional[int] = ..., interpolation: _Optional[str] = ..., pad_color: _Optional[_Iterable[int]] = ..., background: _Optional[_Iterable[int]] = ..., crop_rounding: _Optional[_Union[Preprocessing.CropRounding, str]] = ..., jpeg_decoding: _Optional[_Union[Preprocessing.JpegDecoding, str]] = ..., id: _Optional[str] = ...) -> None: ...

class BatchLatency(_message.Message):
    __slots__ = ("batch_size", "seconds")
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    batch_size: int
    seconds: float
    def __init__(self, batch_size: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...
