"""ONNX Runtime sessions: the device, the threads, the memory."""

import functools
from pathlib import Path
from typing import Any, Final, Literal

import onnxruntime as ort

from vistazo_server.artifact.model_formats import listed
from vistazo_server.engine.onnx_file import missing_weights
from vistazo_server.errors import ModelLoadError, StartupError, one_line

Device = Literal["cpu", "cuda"]

PROVIDER: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# cuDNN's exhaustive search times every algorithm for each new shape, 0.3 to 1.3 s a time, and a dynamic
# batcher makes new shapes all day; the heuristic picks nearly as well at once (PaddleOCR#5057).
_CUDA_OPTIONS: Final = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}

_SAME_AS_REQUESTED: Final = 1
_DEFAULT: Final = -1


# Threads that spin while they wait for work take the CPU from decoding and from gRPC. But to wake them for
# each operator costs a share of each run: they spin for the moment between two, and not between runs.
_SPIN_MICROSECONDS: Final = 50
_SPINNING: Final = (
    ("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS)),
    ("session.force_spinning_stop", "1"),
)
_NO_SPINNING: Final = (("session.intra_op.allow_spinning", "0"),)
_SPIN_DURATION_SINCE: Final = (1, 32)


def _knows_spin_duration() -> bool:
    """Return whether this ONNX Runtime can limit the spinning; an older one would ignore the option."""
    return tuple(int(part) for part in ort.__version__.split(".")[:2]) >= _SPIN_DURATION_SINCE


def choose_device(wanted: Literal["auto", "cpu", "cuda"], *, allow_cpu_fallback: bool) -> Device:
    """Return the device to load models on. Raises StartupError when CUDA is wanted and not offered."""
    if wanted == "cpu":
        return "cpu"
    if PROVIDER["cuda"] in ort.get_available_providers():
        # Finds the CUDA and cuDNN libraries of the nvidia-* wheels, or those that torch brought.
        ort.preload_dlls()
        return "cuda"
    if wanted == "auto" or allow_cpu_fallback:
        return "cpu"
    raise StartupError(
        "--device cuda: this ONNX Runtime has no CUDA; pip install 'vistazo[server-gpu]' in an environment "
        "without the package onnxruntime, or allow the CPU with --allow-cpu-fallback"
    )


def create_session(
    path: Path, *, device: Device, threads: int, skip_layout_pass: bool = False, gpu_memory: int = 0
) -> ort.InferenceSession:
    """Return a session for the model at `path`; ask it which provider it really took.

    `threads` run one inference on the CPU. `skip_layout_pass`: do without its blocked layout for
    convolutions. `gpu_memory`: most bytes of the session's arena on the GPU, 0: no limit. Raises
    ModelLoadError.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads if device == "cpu" else 1
    options.inter_op_num_threads = 1
    for entry in _SPINNING if _knows_spin_duration() else _NO_SPINNING:
        options.add_session_config_entry(*entry)
    # Whatever fails is raised, and logged by who catches it: lines of its own know no limit of their rate.
    options.log_severity_level = 4
    providers: list[Any] = [PROVIDER["cpu"]]
    if device == "cuda":
        limit = {"gpu_mem_limit": str(gpu_memory)} if gpu_memory else {}
        providers.insert(0, (PROVIDER["cuda"], _CUDA_OPTIONS | limit))
    else:
        _share_cpu_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return ort.InferenceSession(
            str(path),
            options,
            providers=providers,
            disabled_optimizers=["NchwcTransformer"] if skip_layout_pass else None,
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if missing := missing_weights(path):
            raise ModelLoadError(
                f"{path} has weights in files of their own, which are missing beside it: {listed(missing)}; "
                "copy them there"
            ) from error
        message = one_line(error, characters=300)
        raise ModelLoadError(f"{path} is not a model that ONNX Runtime can run: {message}") from error


@functools.cache
def _share_cpu_arena() -> None:
    """Give all sessions of the process one arena, once.

    Models of a device run one at a time, so one arena as large as the largest of them needs is enough; with
    one each, VGG16, ResNet18 and AlexNet together held 120 MB more at batch 8.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    arena = ort.OrtArenaCfg(
        {
            "max_mem": 0,  # no limit
            "arena_extend_strategy": _SAME_AS_REQUESTED,
            "initial_chunk_size_bytes": _DEFAULT,
            "max_dead_bytes_per_chunk": _DEFAULT,
        }
    )
    ort.create_and_register_allocator(memory, arena)
