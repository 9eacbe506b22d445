"""Where a torch module, its weights, its labels and its preprocessing come from.

Imports torch, and of ours `errors` and `progress`. Start with `zoo`; `preset` is the preprocessing.
"""
