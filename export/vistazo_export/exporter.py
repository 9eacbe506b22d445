"""The export of one network, start to end: resolve, load, write, check, publish."""

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from vistazo_export.checks.batch_mates import check_batch_mates
from vistazo_export.checks.parity import BOUNDS, measure_parity, open_session, run_onnx, sample_pixels
from vistazo_export.conversion.calibration import CalibrationSet, calibration_set
from vistazo_export.conversion.half import write_fp16
from vistazo_export.conversion.onnx_export import check_onnx, write_onnx
from vistazo_export.errors import ExportError, PresetError, RepositoryError, WeightsUnavailableError
from vistazo_export.foreign.imported import check_external_files
from vistazo_export.foreign.interface import read_interface
from vistazo_export.foreign.scores import KINDS, score_kind
from vistazo_export.networks import zoo
from vistazo_export.networks.checkpoint_options import NOTHING_SAID, CheckpointOptions
from vistazo_export.networks.download import sha256_of
from vistazo_export.networks.labels import read_labels
from vistazo_export.networks.own_preset import with_preprocess
from vistazo_export.presets.preprocess import sentence
from vistazo_export.presets.preset import to_proto
from vistazo_export.progress import SILENT, Progress
from vistazo_export.publishing import repository as repo
from vistazo_export.publishing.manifest import (
    OUTPUT_TENSOR,
    describes,
    plan_manifest,
    read_manifest,
    triton_config,
    write_manifest,
)
from vistazo_proto.manifest_pb2 import ModelManifest, Output

# A folder name that also does as a metric label and a gRPC health service.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ExportRequest:
    """What to export and where to."""

    architecture: str
    repository: Path
    name: str = ""
    """Folder in the repository; by default the architecture, with the precision where that is not fp32."""
    weights: str = "pretrained"
    """As `zoo.resolve` takes it."""
    checkpoint: CheckpointOptions = NOTHING_SAID
    """Of a weights file."""
    labels: Path | None = None
    preprocess: str = ""
    """As `preprocess.read_preprocess` takes it; empty: as published."""
    weights_mirror: str | None = None
    allow_untrained: bool = False
    """Fall back to seeded random weights where the published ones cannot be had."""
    precision: str = "fp32"
    """One of `parity.BOUNDS`."""
    calibration: Path | None = None
    """Folder of images to calibrate int8 with; by default our own."""
    output_kind: str = ""
    """One of scores.KINDS; empty: logits, unless one's own module ends in a sigmoid or a softmax."""
    max_batch_size: int = 32
    force: bool = False
    """Do all the work again though an existing version was made from the same."""

    @property
    def model_name(self) -> str:
        """The folder in the repository."""
        suffix = "" if self.precision == "fp32" else f"-{self.precision}"
        return self.name or f"{zoo.folder_name(self.architecture)}{suffix}"


@dataclass(frozen=True)
class ExportedModel:
    """A version in the repository."""

    manifest: ModelManifest
    version: int
    seconds: float
    """What the export took."""
    published: bool
    """False where an existing version was the same already."""


@dataclass(frozen=True)
class ExistingVersion:
    """The newest version of a model, its files checked against its manifest."""

    manifest: ModelManifest
    version: int


def export_model(request: ExportRequest, progress: Progress = SILENT) -> ExportedModel:
    """Export one network into the repository and return the version that holds it.

    A new version appears only after all checks have passed, and only where the newest one differs;
    nothing that was there is touched. Raises ExportError.
    """
    started = time.monotonic()
    name = request.model_name
    check_name(name)
    progress.stage("resolving")
    labels = None if request.labels is None else read_labels(request.labels, progress)
    recipe = _recipe(request, labels)
    progress.note(f"{name}: preprocessing: {sentence(to_proto(recipe.preset))}; {_origin(recipe)}")
    calibration = _calibration(request, recipe)
    newest = newest_version(request.repository, name)

    def plan(recipe: zoo.Recipe) -> ModelManifest:
        return plan_manifest(
            recipe,
            name=name,
            precision=request.precision,
            max_batch_size=request.max_batch_size,
            calibration=calibration.summary if calibration else "",
            kind=KINDS[request.output_kind or "logits"],
        )

    def unchanged(existing: ExistingVersion) -> ExportedModel:
        repo.repair_config(request.repository, name, triton_config(existing.manifest))
        return ExportedModel(existing.manifest, existing.version, time.monotonic() - started, published=False)

    # What code has changed shows only in the graph.
    settled = newest and not request.force and not recipe.is_own_code
    if newest and settled and describes(newest.manifest, plan(recipe)):
        return unchanged(newest)
    try:
        network = zoo.load(recipe, mirror=request.weights_mirror, progress=progress)
    except WeightsUnavailableError as error:
        if not request.allow_untrained:
            mirror = "--weights-mirror URL, " if zoo.has_mirrors(recipe) else ""
            raise WeightsUnavailableError(
                f"{error}; other ways: {mirror}--weights FILE, --weights untrained"
            ) from error
        progress.warning(f"{name}: {error}. Using UNTRAINED weights instead: the answers mean nothing.")
        recipe = recipe.untrained()
        if newest and not request.force and describes(newest.manifest, plan(recipe)):
            return unchanged(newest)
        network = zoo.load(recipe, progress=progress)

    with repo.staging(request.repository, name) as staged:
        try:
            manifest = _write(
                network, plan(network.recipe), request.output_kind, calibration, staged, progress
            )
        except OSError as error:
            raise RepositoryError(
                f"cannot write to {request.repository}: {error.strerror or error}"
            ) from error
        progress.stage("publishing")
        with repo.publishing(request.repository):
            # Another export of the same may have ended since this one began.
            newest = newest_version(request.repository, name)
            same_graph = newest is not None and newest.manifest.model_sha256 == manifest.model_sha256
            planned = plan(network.recipe)
            planned.output.kind = manifest.output.kind
            if newest is None or not (same_graph and describes(newest.manifest, planned)):
                version = repo.publish(staged, request.repository)
                return ExportedModel(manifest, version, time.monotonic() - started, published=True)
        return unchanged(newest)


def _recipe(request: ExportRequest, labels: tuple[str, ...] | None) -> zoo.Recipe:
    """Return the network that is meant, its images prepared as the user says."""
    recipe = zoo.resolve(request.architecture, request.weights, labels, options=request.checkpoint)
    if request.preprocess:
        return with_preprocess(recipe, request.preprocess)
    if recipe.is_own_code:
        raise PresetError(
            f"how images are prepared for {request.architecture} is not known: say --preprocess imagenet, "
            "the name of torchvision's weights, or a FILE"
        )
    return recipe


def _origin(recipe: zoo.Recipe) -> str:
    """Say where the preprocessing comes from, and what to do where that is a guess."""
    if recipe.preset_is_told or recipe.weights.source == "pretrained":
        return f"from {recipe.preset_from}"
    # timm has networks without published weights, and knows how images are prepared for these, too.
    whose = "its configuration" if recipe.preset_from.startswith("timm ") else "the published weights"
    if recipe.weights.source == "untrained":
        return f"from {recipe.preset_from}, {whose}"
    return (
        f"assumed from {recipe.preset_from}, {whose}; if {recipe.weights.name} was trained "
        "with another, say it with --preprocess"
    )


def check_name(name: str) -> None:
    """Raise ExportError where `name` cannot be a model's."""
    if not MODEL_NAME.fullmatch(name):
        raise ExportError(f"{name!r} is no model name: letters, digits, '.', '_' and '-' only")


def newest_version(repository: Path, name: str) -> ExistingVersion | None:
    """Return the newest version of a model, or None where there is none or it is damaged."""
    versions = repo.model_versions(repository / name)
    if not versions:
        return None
    folder = repository / name / str(versions[-1])
    try:
        manifest = read_manifest(folder / repo.MANIFEST_FILE)
        model = folder / repo.MODEL_FILE
        if manifest.model_sha256 != sha256_of(model):
            return None
        check_external_files(folder, manifest)
    except (RepositoryError, OSError):
        return None
    return ExistingVersion(manifest, versions[-1])


def _calibration(request: ExportRequest, recipe: zoo.Recipe) -> CalibrationSet | None:
    """Return what to calibrate with; None where the precision needs nothing."""
    if request.precision != "int8":
        return None
    return calibration_set(request.calibration, recipe.preset.channels)


def _write(
    network: zoo.LoadedNetwork,
    plan: ModelManifest,
    output_kind: str,
    calibration: CalibrationSet | None,
    staged: repo.StagedModel,
    progress: Progress,
) -> ModelManifest:
    """Write all files of the staged model, checked, and return its complete manifest."""
    model = staged.version / repo.MODEL_FILE
    manifest = ModelManifest()
    manifest.CopyFrom(plan)
    progress.stage("exporting")
    if plan.precision == "fp32":
        write_onnx(network, model)
        manifest.output.kind = _kind(model, network, output_kind, progress.about(plan.name))
    else:
        with tempfile.TemporaryDirectory(dir=staged.root) as folder:
            full = Path(folder) / repo.MODEL_FILE
            write_onnx(network, full)
            manifest.output.kind = _kind(full, network, output_kind, progress.about(plan.name))
            _write_variant(full, model, network, calibration, progress)
    progress.stage("checking")
    manifest.opset = check_onnx(model, manifest)
    manifest.model_sha256 = sha256_of(model)
    manifest.model_bytes = model.stat().st_size
    progress.stage("comparing")
    manifest.parity.CopyFrom(measure_parity(model, network, manifest.max_batch_size, manifest.precision))
    check_batch_mates(model, manifest)
    manifest.one_by_one = ""
    write_manifest(staged.version / repo.MANIFEST_FILE, manifest)
    (staged.folder / repo.CONFIG_FILE).write_text(triton_config(manifest), encoding="utf-8")
    return manifest


def _kind(model: Path, network: zoo.LoadedNetwork, said: str, progress: Progress) -> "Output.Kind":
    """Return what the scores of the written graph are: as the user says, or as one's own module ends."""
    if not (said or network.recipe.is_own_code):
        return Output.LOGITS
    origin = read_interface(model).origins[OUTPUT_TENSOR]
    if not said and origin.operator not in {"Sigmoid", "Softmax"}:
        return Output.LOGITS
    pixels = sample_pixels(network.recipe.preset)
    rows = run_onnx(open_session(model, "fp32"), pixels, [1], BOUNDS["fp32"].spread).alone
    return score_kind(rows, OUTPUT_TENSOR, origin, said=said, progress=progress)


def _write_variant(
    full: Path,
    model: Path,
    network: zoo.LoadedNetwork,
    calibration: CalibrationSet | None,
    progress: Progress,
) -> None:
    """Write the int8 or, with nothing to calibrate on, the fp16 variant of the graph at `full`."""
    if calibration is None:
        progress.stage("rounding to fp16")
        write_fp16(full, model)
        return
    # Its imports take a while, and few exports need them.
    from vistazo_export.conversion.quantize import write_int8  # noqa: PLC0415

    progress.stage("calibrating on " + calibration.summary)
    write_int8(full, model, calibration.batches(network.recipe.preset))
