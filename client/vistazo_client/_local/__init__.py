"""Preprocessing at the client: how a model prepares its images, asked once, and done here by threads.

Imports the client's codec and images, and by `recipe` Pillow, so that it is itself imported only where a
client wants it. Start with `preparation`. Nothing here is public.
"""
