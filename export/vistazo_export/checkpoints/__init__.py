"""Weights files as training scripts write them: what is in one, and which of its tensors are a network's.

Nothing in a file is run. Imports torch, and of ours `errors` and `progress`. Start with `checkpoint`.
"""
