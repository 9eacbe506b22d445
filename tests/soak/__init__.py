"""A soak: good, bad, huge, cancelled and slow callers at one server, and what it has become of it.

`python -m soak --seconds 600` with `tests` on the Python path, or `make soak`.
"""
