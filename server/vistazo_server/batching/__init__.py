"""Which requests run together, when, and which are refused: DynamicBatcher, DeviceScheduler, LatencyModel.

Imports `telemetry` and `errors`; knows no engine, no image and no protobuf. Start with `batcher`.
"""
