"""ForkLock: a lock that a forked child never waits for a thread of its parent's at.

Nothing here is public.
"""

import os
import threading


class ForkLock:
    """Holds a lock that is another one in each child. Make it once, for a module."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """Take another lock; the old one may be held for ever."""
        self.lock = threading.Lock()
