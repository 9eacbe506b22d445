"""The models of a folder: found, loaded, handed to requests, swapped and unloaded while they are used.

Imports `inference`, `engine`, `batching`, `artifact` and `telemetry`; knows no protobuf. Start with
`model_repository`, then `served_model` and `rollout`; `loader` puts one version together.
"""
