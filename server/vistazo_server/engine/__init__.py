"""ONNX Runtime: sessions, graphs, tensors, runners, and the budgets of CPU and memory.

Imports `batching`, `artifact` and `telemetry`; knows no image file and no door. Start with `onnx_model`.
"""
