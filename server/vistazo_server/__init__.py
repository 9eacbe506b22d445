"""Vistazo's server: image classifiers over gRPC.

The rooms, which import downwards only:

    rpc            the gRPC door: who may call, what came, what goes back
    repository     the models of a folder: find, load, hand out, swap, unload
    inference      images or tensors in, predictions out
    engine         ONNX Runtime: sessions, graphs, tensors, threads, memory
    batching       which requests run together, when, and which are refused
    artifact       one version's folder, checked against its manifest
    telemetry      metrics, logs, traces, request ids
    errors         what can go wrong, and the one status of each

`cli` is the command, `settings` its options; `server` builds all this from them. A request comes in at
`rpc.interceptors`, and is decoded, answered and encoded in `rpc.classification.service`. What answers it is
`inference.classifier`, by `batching.batcher`, which runs `engine.onnx_model`.
"""

import os

# ONNX Runtime reports its use to its makers unless told not to before it is first imported. What the operator
# has set wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
