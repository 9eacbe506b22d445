"""Load, limits, and the processes that make them: what is measured, and on what machine.

Imports the client. Start with `rig`, which measures a server and its limits in turns.
"""
