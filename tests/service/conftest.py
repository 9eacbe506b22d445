"""What the integration tests share: repositories of tiny models, and a clean environment."""

import os
from pathlib import Path

import pytest

from support.tiny import tiny_model, write_model

# One run of this model takes about a fifth of a second: long enough to look at what waits meanwhile.
SLOW_COST = 600


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("VISTAZO_"):
            monkeypatch.delenv(name)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with the model `tiny`."""
    write_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def slow_models(tmp_path: Path) -> Path:
    """A repository with a model `tiny` that is slow."""
    write_model(tmp_path / "slow", model=tiny_model(cost=SLOW_COST))
    return tmp_path / "slow"
