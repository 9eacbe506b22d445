"""Where a torch module, its weights and its labels come from.

Imports torch, and of ours `presets`, `checkpoints`, `errors` and `progress`. Start with `zoo`.
"""
