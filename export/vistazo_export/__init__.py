"""Vistazo's export package."""
