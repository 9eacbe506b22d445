"""`vistazo bench`: how fast a server is, as shares of what the machine itself can do.

Absolute figures depend on the machine and on its neighbours. What is served and the limit it is held
against are therefore measured in turns, in short segments A B A B …, and each figure is the median of the
rounds' ratios.

cli.py        the command
scenarios.py  one kind of load against one model, with its limits beside it
standard.py   the set behind `make bench`; plan.py is its time, int8.py and memory.py two of its lines
search.py     the highest Poisson rate whose p99 keeps a bound (MLPerf's Server scenario)
load.py       the load generators: closed loop, open loop
limits.py     what the machine can do: ONNX Runtime alone, a bare grpc.aio echo, decoding alone
records.py    what a segment of load recorded, and the arithmetic on it
figures.py    a measured figure, its target, and the spread over the rounds
payload.py    the requests, and whether the answers to them are right
serving.py    the server under test
worker.py     a process for each of these, that always ends
report.py, plot.py, machine.py   tables and JSON, latency plots, what it all ran on

Nothing here is public but the command. It needs the extra `bench`; everything beyond the client's own
dependencies is imported where it is used.
"""

import os

# ONNX Runtime reports its use to its makers unless told not to before it is first imported. What the operator
# has set wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
