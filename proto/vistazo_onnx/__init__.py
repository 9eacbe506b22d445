"""ONNX files without a package for them, and what batches do to their answers.

ONNX is the one contract here that is not ours, which both who imports a graph and who serves it read:

    wire.py         the fields of a protobuf message, found without copying what is in them
    graph.py        nodes, small constants, subgraphs and functions of a model.onnx
    operators.py    what each operator does with the dimension that counts samples
    batch_mates.py  the operator by which samples of one batch influence each other
    trial.py        the same by trial: one sample beside mates of extreme values

Imports the standard library and NumPy only.
"""
