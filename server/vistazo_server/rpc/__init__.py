"""The gRPC door: listener, TLS, tokens, interceptors, health, and both services with their codecs.

Imports every room below it; only `server` imports it. Start with `door`, then `interceptors` and a `service`.
"""
