"""Vistazo's server: image classifiers over gRPC.

The path of a request, downwards only:

    interceptors     who may call, what each RPC is given
    calls            error → status, metrics, access log
    classification   decode → call → encode
    codec            protobuf ⇄ plain values, every check of a request
    classifier       images → preprocess → batcher → softmax, top-k, labels
    preprocess       image bytes → uint8 H×W×C
    batcher          DynamicBatcher: admission, bounded queue, batch forming, scatter
    device           DeviceScheduler: one batch at a time on a device, earliest deadline first
    model            OnnxModel: one network on its device's engine thread
    engine           Engine: the one thread that runs all models of a device
    session          ONNX Runtime's device, threads and memory

`server` builds all this from `settings`; `repository` finds and loads the models, each described by its
`manifest`, known to callers through the `catalog`.
"""

import os

# ONNX Runtime reports its use to its makers unless told not to before it is first imported. What the operator
# has set wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
