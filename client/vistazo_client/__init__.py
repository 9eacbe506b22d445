"""Vistazo's Python client."""
