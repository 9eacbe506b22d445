"""What each file format says of an image before it is decoded, and what decodes it; and what is no image.

Imports Pillow, and of ours `picture`, `effort` and `errors`. Start with `header`; `reading` chooses.
"""
