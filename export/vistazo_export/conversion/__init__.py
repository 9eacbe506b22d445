"""A torch module → model.onnx, also in int8 and fp16, and the images that int8 is calibrated on.

Imports `checks`, `publishing` and `networks`. Start with `onnx_export`.
"""
