"""A real OnnxModel on the CPU, with an engine of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vistazo_server.artifact.verification import verified_spec
from vistazo_server.engine.batch_limit import BatchLimit
from vistazo_server.engine.engine import Engine
from vistazo_server.engine.onnx_model import OnnxModel


@contextmanager
def cpu_model(folder: Path, name: str, *, batch_limit: BatchLimit, instances: int = 1) -> Iterator[OnnxModel]:
    """Hold the model in a version's folder, not loaded yet, with one thread for each run."""
    engine = Engine(instances=instances)
    try:
        yield OnnxModel(
            folder / "model.onnx",
            verified_spec(folder, name),
            engine=engine,
            device="cpu",
            allow_cpu_fallback=False,
            threads=1,
            batch_limit=batch_limit,
        )
    finally:
        engine.close()
