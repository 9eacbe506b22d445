"""Vistazo's export stage: torch networks in, verified ONNX model repositories out.

torch lives in this package and nowhere else. Nothing heavy is imported until a command runs. The rooms, which
import downwards only:

    cli, report          the commands, and what they print
    importer, exporter   from a request to a published version; verify repeats the checks
    foreign              ONNX classifiers made elsewhere
    conversion           a torch module → model.onnx
    checks               parity with torch, on real images
    publishing           the manifest, and versions that appear whole
    networks             where modules, weights and labels come from
    presets              how an image becomes a network's input

Start with `exporter`.
"""

import os

# ONNX Runtime reports its use to its makers unless told not to before it is first imported. What the operator
# has set wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
