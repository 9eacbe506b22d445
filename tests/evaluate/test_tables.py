"""How figures are written."""

import pytest

from vistazo_evaluate.tables import percent


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (0.0, "0.0%"),
        (0.8571, "85.7%"),
        (0.9994, "99.9%"),
        (0.9996, "99.96%"),
        # One wrong of 50,000 is not all of them.
        (49_999 / 50_000, "99.99%"),
        (1.0, "100.0%"),
    ],
)
def test_nearly_all_is_not_told_as_all(value, written):
    assert percent(value) == written
