"""Vistazo's export stage: torch networks in, verified ONNX model repositories out.

torch lives in this package and nowhere else. Nothing heavy is imported until a command runs.
"""
