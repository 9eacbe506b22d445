"""Images or tensors in, predictions out: what every door calls. Plain values, no protobuf.

Imports `engine`, `batching`, `artifact`, `telemetry` and the shared preprocessing. Start with `classifier`
for images and `predictor` for tensors; `preprocess_pool` decodes, `side_thread` spares the event loop.
"""
