"""Tables, JSON and plots of what was measured.

Imports `measuring`. Start with `report`.
"""
