"""`make lock`: resolve what each image installs, and write it down in deploy/requirements/.

Run with the Python and on the platform of the images (CPython 3.11, Linux x86-64): markers are evaluated
here.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "deploy" / "requirements"

IMAGES = {
    "server": ("server", "tracing"),
    "server-gpu": ("server-gpu", "tracing"),
    "export": ("export",),
}
"""Target of the Dockerfile → extras of the package."""

# The builds of torch for one accelerator, such as 2.13.0+cpu, satisfy 2.13.0; which one is installed is the
# builder's choice (a wheelhouse, an index), and what it needs beyond this list is pinned by its own metadata.
BUILD_SEPARATOR = "+"


def resolve(extras: tuple[str, ...]) -> dict[str, str]:
    """Return name → version of all that pip would install for `extras`, but for the package itself."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"),
            *("--ignore-installed", "--report", str(report), f"{ROOT}[{','.join(extras)}]"),
        ]
        subprocess.run(command, check=True)  # noqa: S603  our own arguments
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    packages = {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"] for item in installed}
    accelerator = {name for name in packages if name.startswith(("nvidia-", "triton", "cuda-"))}
    drop = {"vistazo"} | (accelerator if "torch" in packages else set())
    return {
        name: metadata["version"].partition(BUILD_SEPARATOR)[0]
        for name, metadata in sorted(packages.items())
        if name not in drop
    }


def main() -> None:
    """Write one file for each image."""
    REQUIREMENTS.mkdir(exist_ok=True)
    for image, extras in IMAGES.items():
        lines = [f"# The image `{image}`: vistazo[{','.join(extras)}]. Made by `make lock`; do not edit."]
        lines += [f"{name}=={version}" for name, version in resolve(extras).items()]
        (REQUIREMENTS / f"{image}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
