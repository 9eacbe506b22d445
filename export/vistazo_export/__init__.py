"""Vistazo's export stage: torch networks in, verified ONNX model repositories out.

torch lives in this package and nowhere else. Nothing heavy is imported until a command runs.
"""

import os

# ONNX Runtime reports its use to its makers unless told not to before it is first imported. What the operator
# has set wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
