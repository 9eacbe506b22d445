"""Parity of ONNX Runtime with torch, and the real images that it is measured on.

Imports `publishing` and `networks`. Start with `parity`.
"""
