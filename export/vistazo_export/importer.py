"""The import of one ONNX file, start to end: read, decide, copy, check, publish.

The file is copied byte for byte, with the files that hold its weights. What it does not tell is asked for
by an error that names the option.
"""

import shutil
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from vistazo_export.checks.parity import open_session
from vistazo_export.errors import GraphError, RepositoryError, UndecidedError
from vistazo_export.exporter import ExportedModel, check_name, newest_version
from vistazo_export.foreign.hub_folder import PROCESSORS, check_classifier, read_hub_folder
from vistazo_export.foreign.image_input import (
    ImageOptions,
    image_input,
    image_tensor,
    says_layout,
)
from vistazo_export.foreign.imported import batch_limit, image_feeds, is_batched, random_feeds, run_graph
from vistazo_export.foreign.interface import OnnxInterface, check_model, read_interface
from vistazo_export.foreign.scores import ScoresOptions, scores_output
from vistazo_export.networks.download import sha256_of
from vistazo_export.networks.labels import read_labels
from vistazo_export.presets.preprocess import IMAGENET, NONE, preprocessing_for, read_preprocess, sentence
from vistazo_export.presets.torchvision_import import torchvision_models
from vistazo_export.progress import SILENT, Progress
from vistazo_export.publishing import repository as repo
from vistazo_export.publishing.manifest import FORMAT, triton_config, write_manifest
from vistazo_onnx.batch_mates import mixing_operator
from vistazo_proto.manifest_pb2 import ExternalFile, ModelManifest
from vistazo_proto.manifest_pb2 import Weights as WeightsRecord

MADE_WITH = ("vistazo", "onnx", "onnxruntime")
"""Packages whose versions decided whether the import passed."""

PRODUCER = "producer"
"""The entry of made_with that says what wrote the file, as it says itself."""


@dataclass(frozen=True)
class ImportRequest:
    """What to import, where to, and what its user knows of it."""

    model: Path
    """The graph, or a folder in the Hugging Face hub's layout, which also says labels and preprocessing."""
    name: str
    repository: Path
    preprocess: str = ""
    """"none", or as `preprocess.read_preprocess` takes it; empty: not said."""
    labels: str = ""
    """"imagenet" or a file; empty: none."""
    image: ImageOptions = field(default_factory=ImageOptions)
    output: str = ""
    """The output that scores the classes; empty: the only one that can."""
    output_kind: str = ""
    """One of scores.KINDS; empty: as its origin and its values show."""
    multi_label: bool = False
    """A folder says that an image may show any number of classes."""
    max_batch_size: int = 32
    force: bool = False
    """Publish again though the newest version is the same."""


def import_model(request: ImportRequest, progress: Progress = SILENT) -> ExportedModel:
    """Import one ONNX file into the repository and return the version that holds it.

    A new version appears only after all checks have passed, and only where the newest one differs; nothing
    that was there is touched. Raises ExportError.
    """
    started = time.monotonic()
    check_name(request.name)
    progress.stage("reading")
    request, found = _with_folder(request)
    interface = read_interface(request.model)
    manifest = _plan(request, interface, progress)
    if interface.aside:
        listed = ", ".join(map(str, interface.aside))
        progress.warning(f"{request.name}: left aside, since only tensors can be served: {listed}")
    labels = found if found and not request.labels else _labels(request.labels, progress)
    with repo.staging(request.repository, request.name) as staged:
        progress.stage("copying")
        try:
            _copy(request.model, interface, staged.version, manifest)
        except OSError as error:
            raise _cannot_write(request.repository, error) from error
        progress.stage("checking")
        check_model(staged.version / repo.MODEL_FILE)
        progress.stage("running")
        _run(request, interface, staged.version / repo.MODEL_FILE, labels, manifest, progress)
        progress.stage("publishing")
        try:
            write_manifest(staged.version / repo.MANIFEST_FILE, manifest)
            (staged.folder / repo.CONFIG_FILE).write_text(triton_config(manifest), encoding="utf-8")
        except OSError as error:
            raise _cannot_write(request.repository, error) from error
        with repo.publishing(request.repository):
            # Another import of the same may have ended since this one began.
            newest = newest_version(request.repository, request.name)
            if not newest or newest.manifest != manifest or request.force:
                number = repo.publish(staged, request.repository)
                return ExportedModel(manifest, number, time.monotonic() - started, published=True)
        repo.repair_config(request.repository, request.name, triton_config(manifest))
        return ExportedModel(manifest, newest.version, time.monotonic() - started, published=False)


def _with_folder(request: ImportRequest) -> tuple[ImportRequest, tuple[str, ...]]:
    """Return the request with what a folder says where the user says nothing, and the folder's labels."""
    if not request.model.is_dir():
        return request, ()
    folder = read_hub_folder(request.model)
    if not request.output_kind and request.preprocess != NONE:
        check_classifier(folder)
    if not request.preprocess and not folder.preprocess:
        raise UndecidedError(
            f"{request.model} has no {PROCESSORS[0]}, so say --preprocess imagenet, --preprocess FILE, or "
            "--preprocess none to serve it over Open Inference only"
        )
    told = replace(
        request,
        model=folder.model,
        preprocess=request.preprocess or folder.preprocess,
        image=replace(request.image, open_layout="NCHW"),
        multi_label=folder.is_multi_label,
    )
    return told, () if told.preprocess == NONE else folder.labels


def _plan(request: ImportRequest, interface: OnnxInterface, progress: Progress) -> ModelManifest:
    """Return the manifest as far as it is known without running the graph."""
    made_with = {package: version(package) for package in MADE_WITH}
    if interface.producer:
        made_with[PRODUCER] = interface.producer
    manifest = ModelManifest(
        format=FORMAT,
        name=request.name,
        precision=interface.precision,
        opset=interface.opset,
        made_with=made_with,
    )
    if not request.preprocess:
        raise UndecidedError(
            "a graph does not say how an image becomes its input: say --preprocess imagenet, --preprocess "
            "FILE, or --preprocess none to serve it over Open Inference only"
        )
    if request.preprocess == NONE:
        if replace(request.image, open_layout="") != ImageOptions():
            raise UndecidedError(
                "--layout, --size and --channels are of images, --preprocess none takes none"
            )
        batched = is_batched(interface)
        manifest.max_batch_size = batch_limit(interface.inputs, request.max_batch_size) if batched else 1
        return manifest
    tensor = image_tensor(interface)
    manifest.max_batch_size = batch_limit([tensor], request.max_batch_size)
    described = read_preprocess(request.preprocess)
    manifest.input.CopyFrom(image_input(tensor, request.image, described.fields))
    manifest.preprocessing.CopyFrom(preprocessing_for(described, manifest.input))
    said = sentence(manifest.preprocessing, normalises="normalised by the graph, as it takes UINT8")
    progress.note(f"{request.name}: preprocessing: {said}; from {described.origin}")
    if request.image.open_layout and not request.image.layout and not says_layout(tensor):
        progress.note(f"{request.name}: layout {manifest.input.layout}, as on the hub; --layout says another")
    return manifest


def _labels(choice: str, progress: Progress) -> tuple[str, ...]:
    """Return the labels that the user chose; none where nothing was said."""
    if choice == IMAGENET:
        return tuple(torchvision_models().ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    return read_labels(Path(choice), progress) if choice else ()


def _copy(source: Path, interface: OnnxInterface, folder: Path, manifest: ModelManifest) -> None:
    """Copy the graph and the files of its weights into `folder`, and record them in the manifest."""
    model = folder / repo.MODEL_FILE
    shutil.copyfile(source, model)
    manifest.model_bytes = model.stat().st_size
    manifest.model_sha256 = sha256_of(model)
    manifest.weights.CopyFrom(
        WeightsRecord(source=WeightsRecord.IMPORTED, name=source.name, sha256=manifest.model_sha256)
    )
    for location in interface.external_files:
        beside, target = source.parent / location, folder / location
        if not beside.is_file():
            raise GraphError(f"{source.name} has weights in {location}, which is not beside it")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(beside, target)
        manifest.external_files.append(
            ExternalFile(path=location, bytes=target.stat().st_size, sha256=sha256_of(target))
        )


def _run(
    request: ImportRequest,
    interface: OnnxInterface,
    model: Path,
    labels: tuple[str, ...],
    manifest: ModelManifest,
    progress: Progress,
) -> None:
    """Run the staged graph, and fill in what that shows: the output, its kind, the number of classes."""
    takes_images = manifest.HasField("input")
    scores = takes_images or bool(labels or request.output or request.output_kind)
    feeds = image_feeds(manifest) if takes_images else random_feeds(interface)
    if feeds is None:
        if scores:
            raise UndecidedError(
                "--labels and --output need a run, for which the sizes of the inputs must be fixed"
            )
        open_session(model, manifest.precision)
        progress.warning(f"{request.name}: loaded but not run, since its inputs have no fixed sizes")
        # Where the operators do not tell, the server tries at the sizes that it guesses.
        if is_batched(interface) and (reason := mixing_operator(model)):
            _one_by_one(request, manifest, reason, progress)
        return
    ran = run_graph(model, interface, manifest, feeds)
    _one_by_one(request, manifest, ran.one_by_one, progress)
    answers = ran.answers
    if not scores:
        return
    options = ScoresOptions(request.output, request.output_kind, labels, request.multi_label)
    output = scores_output(interface, answers, options, progress.about(request.name))
    if not labels:
        labels = tuple(str(index) for index in range(output.classes))
        progress.warning(
            f"{request.name}: without --labels its classes are called by number, 0 to {output.classes - 1}"
        )
    manifest.output.CopyFrom(output)
    manifest.labels.extend(labels)


def _one_by_one(request: ImportRequest, manifest: ModelManifest, reason: str, progress: Progress) -> None:
    """Record why samples must not share a batch, or that nothing speaks against it."""
    manifest.one_by_one = reason
    if reason and manifest.max_batch_size > 1:
        manifest.max_batch_size = 1
        progress.warning(f"{request.name}: its samples run one by one, not in batches: {reason}")


def _cannot_write(repository: Path, error: OSError) -> RepositoryError:
    return RepositoryError(f"cannot write to {repository}: {error.strerror or error}")
