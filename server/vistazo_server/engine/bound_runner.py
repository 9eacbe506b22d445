"""BoundRunner: batches through buffers that stay on the device, with ONNX Runtime's IO binding."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from vistazo_server.engine.graph import Sample
from vistazo_server.engine.runner import Runner
from vistazo_server.engine.tensors import Array, Signature, TensorSpec

_DEVICE_ID: Final = 0


class BoundRunner(Runner[Any]):
    """For one input of a fixed shape, on CUDA: a batch is copied into device memory that is allocated once.

    Handed over as an array, each batch would be allocated anew on the device, and the arena of a busy server
    would be cut up by their changing sizes. There is a pair of buffers, host and device, for each power of
    two up to the largest batch, together twice as large as that; a batch takes the smallest it fits into.
    Outputs are small and come back as arrays.
    """

    def __init__(
        self, session: ort.InferenceSession, signature: Signature, *, max_batch_size: int, device: str
    ) -> None:
        super().__init__(session, signature)
        (self._input,) = signature.inputs
        self._device = device
        self._buffers: list[_Buffer] = []
        size = 1
        while not self._buffers or self._buffers[-1].size < max_batch_size:
            self._buffers.append(_Buffer(self._input, min(size, max_batch_size), device))
            size *= 2

    def _feed(self, samples: Sequence[Sample]) -> Any:  # noqa: ANN401  ONNX Runtime ships no types
        count = len(samples)
        buffer = next(buffer for buffer in self._buffers if buffer.size >= count)
        for into, sample in enumerate(samples):
            buffer.host[into] = sample
        buffer.device.update_inplace(buffer.host)
        # A binding of its own for each run: one that is kept keeps the outputs of its first run, too, and
        # with them their shapes, which may depend on the data.
        return self._bind(buffer, count)

    def _compute(self, feed: Any, options: ort.RunOptions | None) -> tuple[Array, ...]:  # noqa: ANN401
        self._session.run_with_iobinding(feed, options)
        return tuple(feed.copy_outputs_to_cpu())

    def _bind(self, buffer: "_Buffer", count: int) -> Any:  # noqa: ANN401
        binding = self._session.io_binding()
        shape = [count, *self._input.dims]
        binding.bind_input(
            self._input.name,
            self._device,
            _DEVICE_ID,
            self._input.dtype.type,
            shape,
            buffer.device.data_ptr(),
        )
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        return binding


class _Buffer:
    """Room for `size` samples on the host and on the device."""

    def __init__(self, spec: TensorSpec, size: int, device: str) -> None:
        shape = (size, *spec.dims)
        self.size = size
        self.host: Array = np.zeros(shape, dtype=spec.dtype)
        self.device = ort.OrtValue.ortvalue_from_shape_and_type(
            list(shape), spec.dtype.type, device, _DEVICE_ID
        )
