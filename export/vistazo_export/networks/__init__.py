"""Where a torch module, its weights, its labels and its preprocessing come from.

Imports torch, and of ours `checkpoints`, `errors` and `progress`. Start with `zoo`; `preset` is the
preprocessing, and `preprocess` reads what a user says of it.
"""
