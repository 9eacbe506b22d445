"""`classify_stream` of both clients: one session without I/O, driven by threads or by tasks.

Imports the client's codec, images and retries. Start with `session`. Nothing here is public.
"""
