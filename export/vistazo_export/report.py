"""What the user sees of an export or a verification: progress, warnings, the table at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

from vistazo_export.exporter import ExportedModel
from vistazo_export.progress import Progress
from vistazo_export.publishing.manifest import CALIBRATION
from vistazo_export.verify import Verification
from vistazo_proto.manifest_pb2 import ModelManifest, Parity
from vistazo_proto.manifest_pb2 import Weights as WeightsRecord

COLUMNS = (
    "Model",
    "Version",
    "Weights",
    "Precision",
    "Size",
    "Logits vs torch",
    "Top-1",
    "Seconds",
    "Status",
)

# Rich assumes 80 columns where there is no terminal, too few for the table.
WIDTH_WITHOUT_TERMINAL = 240


class Report:
    """Collects one row per model; `show` prints the table to stdout and the failures to stderr.

    Progress bars appear on stderr while `watching`; where that is no terminal, one line per stage.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._untrained: list[str] = []
        self._calibrations: dict[str, str] = {}
        self._rows: list[tuple[str, ...]] = []
        self._errors = Console(stderr=True)
        self._bars = ProgressBars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._errors,
            transient=True,
        )
        self._all_models = TaskID(0)

    @contextmanager
    def watching(self, total: int) -> Iterator[None]:
        """Show how many of `total` models are done."""
        if not self._errors.is_terminal:
            yield
            return
        with self._bars:
            self._all_models = self._bars.add_task("", total=total)
            yield

    @contextmanager
    def model(self, name: str) -> Iterator[Progress]:
        """Give the callbacks that show the progress of one model."""
        if not self._errors.is_terminal:
            yield Progress(
                stage=lambda stage: click.echo(f"{name}: {stage}", err=True),
                warning=self._warn,
                note=self._note,
            )
            return
        download: TaskID | None = None

        def stage(text: str) -> None:
            self._bars.update(self._all_models, description=f"{escape(name)}: {text}")

        def downloaded(done: int, total: int | None) -> None:
            nonlocal download
            if download is None:
                download = self._bars.add_task(f"{escape(name)}: download", total=total)
            megabytes = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
            self._bars.update(
                download, completed=done, total=total, description=f"{escape(name)}: {megabytes}"
            )

        yield Progress(stage=stage, downloaded=downloaded, warning=self._warn, note=self._note)
        if download is not None:
            self._bars.remove_task(download)
        self._bars.advance(self._all_models)

    def add_exported(self, exported: ExportedModel, verb: str = "exported") -> None:
        """Add the row of a model that is in the repository now."""
        status = f"[green]{verb}[/]" if exported.published else "unchanged"
        self._add(exported.manifest, exported.version, exported.manifest.parity, exported.seconds, status)

    def add_verified(self, verification: Verification) -> None:
        """Add the row of a model that was verified, and its problems to the failures."""
        name, version = verification.name, verification.version
        self.failures += [f"{name} version {version}: {problem}" for problem in verification.problems]
        status = "[red]FAILED[/]" if verification.problems else "[green]passed[/]"
        if verification.manifest is None:
            self._rows.append((escape(name), str(version), *[""] * 5, f"{verification.seconds:.1f}", status))
            return
        skipped = f"skipped: {verification.skipped}" if verification.skipped else ""
        self._add(
            verification.manifest, version, verification.parity, verification.seconds, status, skipped, name
        )

    def add_failure(self, name: str, error: str, seconds: float) -> None:
        """Add the row of a model that could not be exported."""
        self.failures.append(f"{name}: {error}")
        self._rows.append((escape(name), *[""] * 6, f"{seconds:.1f}", "[red]FAILED[/]"))

    def show(self) -> None:
        """Print the table, what must be known about it, and one line for each failure."""
        output = Console()
        if not output.is_terminal:
            output = Console(width=WIDTH_WITHOUT_TERMINAL)
        table = Table(*COLUMNS)
        for row in self._rows:
            table.add_row(*row)
        output.print(table)
        for name, calibration in self._calibrations.items():
            output.print(
                f"{escape(name)}: calibrated on {escape(calibration)}", highlight=False, soft_wrap=True
            )
        if self._untrained:
            names = ", ".join(dict.fromkeys(self._untrained))
            self._warn(f"UNTRAINED weights, whose answers mean nothing: {names}")
        if not self._calibrations.keys().isdisjoint(self._untrained):
            self._warn("untrained logits are all but equal, so int8's share of top-1 says little of int8")
        for failure in self.failures:
            click.echo(f"Error: {failure}", err=True)

    def _note(self, text: str) -> None:
        if self._errors.is_terminal:
            self._errors.print(escape(text), highlight=False, soft_wrap=True)
        else:
            click.echo(text, err=True)

    def _warn(self, text: str) -> None:
        if self._errors.is_terminal:
            self._errors.print(f"[yellow]Warning:[/] {escape(text)}", soft_wrap=True)
        else:
            click.echo(f"Warning: {text}", err=True)

    def _add(
        self,
        manifest: ModelManifest,
        version: int,
        parity: Parity | None,
        seconds: float,
        status: str,
        no_parity: str = "",
        folder: str = "",
    ) -> None:
        if CALIBRATION in manifest.made_with:
            self._calibrations[manifest.name] = manifest.made_with[CALIBRATION]
        weights = escape(manifest.weights.name)
        if manifest.weights.source == WeightsRecord.UNTRAINED:
            self._untrained.append(manifest.name)
            weights = f"[yellow]UNTRAINED[/] ({weights})"
        if manifest.weights.source == WeightsRecord.IMPORTED:
            parity, no_parity = None, "nothing to compare with"
        size = manifest.model_bytes + sum(file.bytes for file in manifest.external_files)
        agreement = top1 = ""
        if parity is not None:
            agreement = f"{parity.max_abs_logit_diff:.1e} ({parity.max_rel_logit_diff:.1e} relative)"
            top1 = f"{parity.top1_agreement:.0%} of {parity.images}"
        self._rows.append(
            (
                escape(folder or manifest.name),
                str(version),
                weights,
                manifest.precision,
                f"{size / 1e6:.1f} MB",
                agreement or escape(no_parity),
                top1,
                f"{seconds:.1f}",
                status,
            )
        )
