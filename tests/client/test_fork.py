"""A client after a fork: both processes go on with it."""

import os
import subprocess
import sys

import pytest

from support.process import environment

# In a process of its own: pytest's has threads that a fork would lose.
FORK = """
import os, sys, threading
from vistazo_client import Client

client = Client(sys.argv[1], timeout=10)

def say(*words):
    # At once: three processes share the pipe.
    os.write(1, (" ".join(words) + "\\n").encode())

def label(name):
    return client.classify(name.encode()).top.label

if sys.argv[2] == "used":
    say(label("before"))
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        with client:
            say(label(f"child {number}"), label(f"child {number} again"))
            labels = [result.top.label for _, result in client.classify_stream([(1, b"streamed")])]
            say(*labels)
        os._exit(0)
    say(label(f"parent {number}"))
    children.append(child)
say(str([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
say(label("after"))
client.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("before", ["used", "unused"])
def test_a_client_works_in_both_processes_after_a_fork(server, before):
    result = subprocess.run(
        [sys.executable, "-c", FORK, server.address, before],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )

    expected = [f"parent {number}" for number in range(3)]
    expected += [f"child {number} child {number} again" for number in range(3)]
    expected += ["streamed"] * 3 + ["[0, 0, 0]", "after"] + ["before"] * (before == "used")
    assert (sorted(result.stdout.splitlines()), result.returncode) == (sorted(expected), 0), result.stderr
