"""A minute of `make soak`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.serial]

TESTS = Path(__file__).parents[1]
SECONDS = 60


@pytest.mark.skipif(sys.platform != "linux", reason="the soak reads /proc")
def test_every_good_request_is_answered_and_nothing_grows_whatever_the_others_do():
    ended = subprocess.run(
        [sys.executable, "-m", "soak", "--seconds", str(SECONDS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["healthy"]
    assert summary["good_failed"] == 0
    assert summary["good_answered"] > 100
    assert summary["others"] > 100
    assert summary["strangers"] > 10
