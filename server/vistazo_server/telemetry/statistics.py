"""What Triton's statistics count and no metric does: the runs of one model, by batch size."""

import threading
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class SizeStatistics:
    """The runs of one batch size."""

    count: int = 0
    input_seconds: float = 0.0
    """Putting the batches together."""
    infer_seconds: float = 0.0
    """The engine's own time."""
    output_seconds: float = 0.0
    """Taking the answers apart."""


@dataclass(slots=True)
class RunStatistics:
    """One model's runs since it was loaded. Any thread may count."""

    sizes: dict[int, SizeStatistics] = field(default_factory=dict)
    """By batch size, which has a maximum: bounded."""
    last_run: float = 0.0
    """Seconds since 1970."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ran(
        self, batch_size: int, *, input_seconds: float, infer_seconds: float, output_seconds: float
    ) -> None:
        """Count one run, and where its seconds went."""
        with self._lock:
            size = self.sizes.get(batch_size)
            if size is None:
                size = self.sizes[batch_size] = SizeStatistics()
            size.count += 1
            size.input_seconds += input_seconds
            size.infer_seconds += infer_seconds
            size.output_seconds += output_seconds
            self.last_run = time.time()
