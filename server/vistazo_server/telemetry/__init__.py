"""What the server tells of itself: metrics, logs, traces, request ids, outcomes.

Imports `errors` only. Start with `metrics`.
"""
