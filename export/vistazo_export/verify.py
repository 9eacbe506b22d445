"""Repeating the export's checks on a repository, whoever wrote it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from vistazo_export.checks.batch_mates import check_batch_mates, mixed
from vistazo_export.checks.parity import (
    BOUNDS,
    MOST_BATCH_SIZE,
    batch_sizes_up_to,
    measure_parity,
    open_session,
    run_onnx,
    sample_pixels,
)
from vistazo_export.conversion.onnx_export import check_onnx
from vistazo_export.errors import ExportError, RepositoryError, WeightsError, WeightsUnavailableError
from vistazo_export.foreign.imported import check_external_files, check_imported
from vistazo_export.foreign.interface import check_model, read_interface
from vistazo_export.networks import own_code, zoo
from vistazo_export.networks.checkpoint_options import CheckpointOptions
from vistazo_export.networks.download import sha256_of
from vistazo_export.networks.own_preset import with_preprocessing
from vistazo_export.presets.preset import Preset, from_proto, to_proto
from vistazo_export.progress import SILENT, Progress
from vistazo_export.publishing import repository as repo
from vistazo_export.publishing.manifest import PREPROCESS, read_manifest, triton_config
from vistazo_proto.manifest_pb2 import ModelManifest, Parity
from vistazo_proto.manifest_pb2 import Weights as WeightsRecord


@dataclass
class Verification:
    """What was found out about one version of a model."""

    name: str
    version: int
    manifest: ModelManifest | None = None
    """None where it cannot be read."""
    parity: Parity | None = None
    """Measured now; None where torch was not compared."""
    skipped: str = ""
    """Why torch was not compared, where that is no fault of the model."""
    problems: list[str] = field(default_factory=list)
    """One line each; empty: the model passed."""
    seconds: float = 0.0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Turn an expected error inside into one of the problems."""
        try:
            yield
        except ExportError as error:
            self.problems.append(str(error))


def versions_to_verify(
    repository: Path, names: Sequence[str], progress: Progress = SILENT
) -> list[tuple[str, int]]:
    """Return name and version of everything in the repository, or of the models in `names`.

    Folders that are no models are warned of, and the others verified. Raises RepositoryError where a model
    of `names` is not there or has no version, and where nothing has any.
    """
    found: list[tuple[str, int]] = []
    strays = []
    for name in names or repo.model_names(repository):
        try:
            versions, misnamed = _versions(repository / name)
        except RepositoryError as error:
            if names:
                raise
            strays.append(str(error))
            continue
        if not versions:
            stray = f"no model {name} in {repository}: it has no folder with a version number"
            stray += f", and {', '.join(misnamed[:3])} is none" if misnamed else ""
            if names:
                raise RepositoryError(stray)
            strays.append(stray)
        elif misnamed:
            strays.append(f"{repository / name}: {', '.join(misnamed[:3])} is no version, such as 1")
        found += [(name, version) for version in versions]
    if not found:
        if repo.model_versions(repository):
            above = repository.absolute()
            raise RepositoryError(
                f"{repository} is one model itself: say vistazo verify {above.parent} {above.name}"
            )
        raise RepositoryError("; ".join(strays[:3]) or f"no models in {repository}")
    for stray in strays:
        progress.warning(stray)
    return found


def _versions(model: Path) -> tuple[list[int], list[str]]:
    """Return the versions of a model, and what may be meant as one."""
    try:
        return repo.model_versions(model), repo.misnamed_versions(model)
    except OSError as error:
        raise RepositoryError(f"{model} cannot be read: {error.strerror or error}") from error


def verify_model(
    repository: Path,
    name: str,
    version: int,
    *,
    weights_files: Sequence[Path] = (),
    weights_mirror: str | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Check one version of a model: manifest, digest, graph, answers, preprocessing, parity.

    `weights_files` are the user's own, for models exported from a checkpoint; without the right one
    torch is not compared. Expected failures become problems of the result; none is raised.
    """
    started = time.monotonic()
    result = Verification(name, version)
    with result.noting():
        progress.stage("reading")
        folder = repository / name / str(version)
        result.manifest = manifest = read_manifest(folder / repo.MANIFEST_FILE)
        _check_record(result, manifest)
        _check_triton_config(result, repository, manifest)
        model = folder / repo.MODEL_FILE
        _check_file(model, manifest)
        progress.stage("checking")
        if manifest.weights.source == WeightsRecord.IMPORTED:
            _check_imported(result, model, manifest, progress)
        else:
            _check_opset(result, check_onnx(model, manifest), manifest)
            _check_answers(result, model, manifest, weights_files, weights_mirror, progress)
            check_batch_mates(model, manifest)
    result.seconds = time.monotonic() - started
    return result


def _check_record(result: Verification, manifest: ModelManifest) -> None:
    """Note where the manifest contradicts its folder or itself; raise where no check can follow."""
    if manifest.name != result.name:
        result.problems.append(f"the manifest is of {manifest.name!r}, the folder is {result.name!r}")
    labels, classes = len(manifest.labels), manifest.output.classes
    if labels != classes:
        raise RepositoryError(f"the manifest has {labels} labels for {classes} classes")
    preprocessing, size = manifest.preprocessing, manifest.input
    if manifest.HasField("input") != manifest.HasField("preprocessing"):
        raise RepositoryError("the manifest has only one of input and preprocessing")
    if (preprocessing.crop_height, preprocessing.crop_width) != (size.height, size.width):
        result.problems.append(
            f"the manifest crops to {preprocessing.crop_height}×{preprocessing.crop_width} "
            f"for an input of {size.height}×{size.width}"
        )
    if not 1 <= manifest.max_batch_size <= MOST_BATCH_SIZE:
        raise RepositoryError(
            f"the manifest's max_batch_size {manifest.max_batch_size} is not in 1 to {MOST_BATCH_SIZE}"
        )
    if manifest.one_by_one and manifest.max_batch_size > 1:
        result.problems.append(mixed(manifest, manifest.one_by_one))


def _check_triton_config(result: Verification, repository: Path, manifest: ModelManifest) -> None:
    """Note where the newest version's config.pbtxt is not the one its manifest calls for."""
    folder = repository / result.name
    if result.version != repo.model_versions(folder)[-1]:
        return
    config = folder / repo.CONFIG_FILE
    if not config.is_file():
        result.problems.append(f"{config.name} is missing")
    elif config.read_text(encoding="utf-8", errors="replace") != triton_config(manifest):
        result.problems.append(f"{config.name} does not go with the manifest")


def _check_opset(result: Verification, opset: int, manifest: ModelManifest) -> None:
    if opset != manifest.opset:
        result.problems.append(f"the graph has opset {opset}, the manifest says {manifest.opset}")


def _check_imported(result: Verification, model: Path, manifest: ModelManifest, progress: Progress) -> None:
    """Check what can be of a graph that was not made here; raise where it does not do what was promised."""
    check_external_files(model.parent, manifest)
    check_model(model)
    interface = read_interface(model)
    _check_opset(result, interface.opset, manifest)
    progress.stage("running")
    check_imported(model, interface, manifest, progress.about(result.name))


def _check_file(model: Path, manifest: ModelManifest) -> None:
    """Raise RepositoryError where model.onnx is not the file that the manifest describes."""
    if not model.is_file():
        raise RepositoryError(f"{model.name} is missing")
    size = model.stat().st_size
    if size != manifest.model_bytes:
        raise RepositoryError(f"{model.name} has {size} bytes, the manifest says {manifest.model_bytes}")
    digest = sha256_of(model)
    if digest != manifest.model_sha256:
        raise RepositoryError(
            f"{model.name} is not the file that was checked at export: its SHA-256 begins {digest[:12]}, "
            f"the manifest says {manifest.model_sha256[:12]}"
        )


def _check_answers(
    result: Verification,
    model: Path,
    manifest: ModelManifest,
    weights_files: Sequence[Path],
    weights_mirror: str | None,
    progress: Progress,
) -> None:
    """Compare the graph's answers with torch's, or at least with its own in other batches."""
    if own_code.is_own_code(manifest.architecture):
        # Nobody who verifies a repository wants to run what its manifests name.
        result.skipped = f"made by {manifest.architecture}, which is not called"
        _run_alone(model, manifest, from_proto(manifest.preprocessing, manifest.input.channels), progress)
        return
    recipe = _recorded_recipe(manifest, weights_files)
    size, preset = manifest.input, recipe.preset
    if PREPROCESS in manifest.made_with:
        # The user's word; that the graph does what is recorded is what the comparison shows.
        recipe = with_preprocessing(recipe, manifest.preprocessing, manifest.made_with[PREPROCESS])
    elif (preset.height, preset.width, preset.channels) != (size.height, size.width, size.channels):
        raise RepositoryError(f"the manifest's input is not that of {manifest.architecture}")
    if to_proto(recipe.preset) != manifest.preprocessing:
        result.problems.append(
            "the manifest's preprocessing is not that of the weights' own transforms: "
            + _differences(manifest, recipe)
        )
    if manifest.weights.source == WeightsRecord.CHECKPOINT and recipe.weights.source != "checkpoint":
        result.skipped = "weights file needed"
    else:
        try:
            network = zoo.load(recipe, mirror=weights_mirror, progress=progress)
        except WeightsUnavailableError as error:
            result.skipped = str(error)
        else:
            if network.recipe.weights.sha256 != manifest.weights.sha256:
                result.problems.append("the weights are not those of the export: another SHA-256")
            progress.stage("comparing")
            result.parity = measure_parity(model, network, manifest.max_batch_size, manifest.precision)
            return
    _run_alone(model, manifest, recipe.preset, progress)


def _run_alone(model: Path, manifest: ModelManifest, preset: Preset, progress: Progress) -> None:
    """Compare the graph's answers with its own in other batches."""
    if manifest.precision not in BOUNDS:
        raise RepositoryError(f"precision {manifest.precision!r} cannot be verified by this Vistazo")
    progress.stage("running")
    run_onnx(
        open_session(model, manifest.precision),
        sample_pixels(preset),
        batch_sizes_up_to(manifest.max_batch_size),
        BOUNDS[manifest.precision].spread,
    )


def _recorded_recipe(manifest: ModelManifest, weights_files: Sequence[Path]) -> zoo.Recipe:
    """Return the recipe that the manifest records; for a checkpoint without its file, untrained."""
    record, labels = manifest.weights, tuple(manifest.labels)
    if manifest.precision not in BOUNDS:
        raise RepositoryError(f"precision {manifest.precision!r} cannot be verified by this Vistazo")
    if record.source == WeightsRecord.PRETRAINED:
        recipe = zoo.resolve(manifest.architecture, "pretrained")
        if recipe.weights.name != record.name:
            recipe = _published_as(manifest.architecture, record.name)
        return replace(recipe, labels=labels)
    untrained = zoo.resolve(manifest.architecture, "untrained", labels)
    if record.source == WeightsRecord.UNTRAINED:
        return replace(untrained, weights=zoo.Weights("untrained", record.name))
    if record.source != WeightsRecord.CHECKPOINT:
        raise RepositoryError("the manifest does not say where the weights come from")
    if not weights_files:
        return untrained
    for file in weights_files:
        if sha256_of(file) == record.sha256:
            # Exports from before it was asked for were all made so.
            as_ever = {"transform_input": "true"} if manifest.architecture in zoo.RENORMALISING else {}
            builder = as_ever | dict(record.builder)
            options = CheckpointOptions(
                record.state_dict_key, tuple(record.ignored_keys), tuple(sorted(builder.items()))
            )
            return zoo.resolve(manifest.architecture, str(file), labels, options=options)
    raise WeightsError(f"none of the files given is {record.name} (SHA-256 {record.sha256[:12]}…)")


def _published_as(architecture: str, name: str) -> zoo.Recipe:
    """Return the recipe with other published weights than the default ones."""
    try:
        recipe = zoo.resolve(architecture, name)
    except WeightsError:
        recipe = None
    # A file of that name may lie about.
    if recipe is None or recipe.weights.source != "pretrained":
        raise RepositoryError(f"{architecture} has no published weights named {name!r}")
    return recipe


def _differences(manifest: ModelManifest, recipe: zoo.Recipe) -> str:
    """Name the fields of the preprocessing that differ, with both values."""
    wanted = to_proto(recipe.preset)
    pairs = (
        (name.name, getattr(manifest.preprocessing, name.name), getattr(wanted, name.name))
        for name in wanted.DESCRIPTOR.fields
    )
    return ", ".join(f"{name} {found} for {right}" for name, found, right in pairs if found != right)
