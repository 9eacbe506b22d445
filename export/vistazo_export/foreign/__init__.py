"""ONNX classifiers made elsewhere: what a graph says, what it asks for, and what it answers.

Imports `checks`, `publishing` and `networks`. Start with `interface`; `image_input` and `scores` read its two
ends.
"""
