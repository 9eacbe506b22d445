"""An image file → pixels as a network wants them, equal to torchvision's presets to the bit.

Imports Pillow and NumPy only, and nothing of ours: the server, the client and the export share it. Start with
`preprocessor`; `spec` says what can be asked for.
"""
