"""What the Open Inference service says of models: metadata, configuration, statistics, the index."""

from collections.abc import Iterable
from typing import Final

from vistazo_proto import open_inference_pb2 as pb
from vistazo_server.engine.tensors import BYTES, DTYPES, Signature
from vistazo_server.repository.catalog import IndexRow, ModelState
from vistazo_server.telemetry.metrics import RequestTotals
from vistazo_server.telemetry.statistics import RunStatistics

PLATFORM: Final = "onnxruntime_onnx"
"""Triton's name for models that ONNX Runtime runs."""

BACKEND: Final = "onnxruntime"

_DATA_TYPES: Final = {name: "TYPE_STRING" if name == BYTES else f"TYPE_{name}" for name in DTYPES}

_STATES: Final = {
    ModelState.LOADING: "LOADING",
    ModelState.READY: "READY",
    ModelState.FAILED: "UNAVAILABLE",
    ModelState.UNLOADING: "UNLOADING",
    ModelState.UNAVAILABLE: "UNAVAILABLE",
}


def encode_metadata(name: str, versions: Iterable[str], signature: Signature) -> pb.ModelMetadataResponse:
    """Return what the model takes and gives."""
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=name,
        versions=versions,
        platform=PLATFORM,
        inputs=[
            tensor(name=spec.name, datatype=spec.datatype, shape=signature.shape(spec))
            for spec in signature.inputs
        ],
        outputs=[
            tensor(name=spec.name, datatype=spec.datatype, shape=signature.shape(spec))
            for spec in signature.outputs
        ],
    )


def encode_config(
    name: str, version: str, signature: Signature, *, max_batch_size: int, device: str, model_file: str
) -> pb.ModelConfigResponse:
    """Return what a config.pbtxt of this model would say.

    `max_batch_size` is that of one run; larger requests are split.
    """
    on_gpu = device == "cuda"
    config = pb.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend=BACKEND,
        default_model_filename=model_file,
        max_batch_size=max_batch_size if signature.is_batched else 0,
        version_policy=pb.ModelVersionPolicy(
            specific=pb.ModelVersionPolicy.Specific(versions=[int(version)])
        ),
        input=[
            pb.ModelInput(name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=spec.dims)
            for spec in signature.inputs
        ],
        output=[
            pb.ModelOutput(name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=spec.dims)
            for spec in signature.outputs
        ],
        instance_group=[
            pb.ModelInstanceGroup(
                name=name,
                count=1,
                kind=pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU,
                gpus=[0] if on_gpu else [],
            )
        ],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )
    if signature.is_batched:
        config.dynamic_batching.SetInParent()
    return pb.ModelConfigResponse(config=config)


def encode_statistics(
    name: str, version: str, requests: RequestTotals, runs: RunStatistics
) -> pb.ModelStatistics:
    """Return what was counted of one model version, as Triton counts.

    How long failed requests took is not kept: their duration is 0.
    """
    answered = requests.answered
    sizes = sorted(runs.sizes.copy().items())
    return pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=round(runs.last_run * 1000),
        inference_count=requests.samples,
        execution_count=sum(size.count for _, size in sizes),
        inference_stats=pb.InferStatistics(
            success=_duration(answered, requests.seconds),
            fail=_duration(requests.failed, 0.0),
            queue=_duration(answered, requests.queue_seconds),
            compute_input=_duration(answered, requests.preprocess_seconds),
            compute_infer=_duration(answered, requests.compute_seconds),
            compute_output=_duration(answered, requests.postprocess_seconds),
            cache_hit=_duration(0, 0.0),
            cache_miss=_duration(0, 0.0),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=batch_size,
                compute_input=_duration(size.count, size.input_seconds),
                compute_infer=_duration(size.count, size.infer_seconds),
                compute_output=_duration(size.count, size.output_seconds),
            )
            for batch_size, size in sizes
        ],
    )


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=max(round(seconds * 1e9), 0))


def encode_index(rows: Iterable[IndexRow], *, only_ready: bool) -> pb.RepositoryIndexResponse:
    """Return every model version and its state."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=row.name, version=row.version, state=_STATES[row.state], reason=row.reason
            )
            for row in rows
            if row.state is ModelState.READY or not only_ready
        ]
    )
