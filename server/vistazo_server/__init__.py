"""Vistazo's server package."""
