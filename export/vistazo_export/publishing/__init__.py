"""The manifest, and versions that appear in the model repository whole or not at all.

Imports `networks` and `errors`. Start with `manifest`; `repository` stages and publishes.
"""
