"""`vistazo bench`: how fast a server is, as shares of what the machine itself can do.

Absolute figures depend on the machine and on its neighbours. What is served and the limit it is held
against are therefore measured in turns, in short segments A B A B …, and each figure is the median of the
rounds' ratios.

The rooms, which import downwards only:

    cli, gpu     the commands
    standard     the set behind `make bench`
    reporting    tables, JSON and plots
    measuring    load, limits, the server under test, and the machine

Nothing here is public but the command. It needs the extra `bench`; everything beyond the client's own
dependencies is imported where it is used.
"""

import os

# ONNX Runtime reports its use to its makers unless told not to before it is first imported. What the operator
# has set wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
