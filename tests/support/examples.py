"""How many examples a property is tried with, where it wants another number than its profile's."""

import hypothesis

DEV_SHARE = 0.25


def examples(count: int) -> int:
    """Return `count` with the profile `ci`, a quarter of it with `dev`."""
    if hypothesis.settings.get_current_profile_name() == "ci":
        return count
    return max(int(count * DEV_SHARE), 1)
