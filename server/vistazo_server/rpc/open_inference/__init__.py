"""inference.GRPCInferenceService, the API for the ecosystem: Open Inference with Triton's extensions.

Start with `service`; `codec` reads requests and writes answers, `contents` reads typed tensors.
"""
