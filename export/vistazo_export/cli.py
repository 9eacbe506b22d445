"""`vistazo export`, `vistazo import` and `vistazo verify`: arguments in, one call per model, a table out.

All join the `vistazo` command as plug-ins, so this module imports without torch; that comes with the
first model.
"""

import re
import time
from pathlib import Path

import click

from vistazo_export.errors import ExportError
from vistazo_export.interrupts import terminated_like_interrupted as _terminated_like_interrupted
from vistazo_export.progress import Progress

PUBLISHED = re.compile(r"\w+_Weights\.\w+")
"""Names of torchvision's published weights."""


# What more than one of the commands takes.
_repository = click.option(
    "--models",
    "repository",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("models"),
    show_default=True,
    help="The model repository; created where it does not exist.",
)
_weights_mirror = click.option(
    "--weights-mirror",
    metavar="URL",
    envvar="VISTAZO_WEIGHTS_MIRROR",
    show_envvar=True,
    help="Folder on another host that has the published files under the same names; hashes are checked.",
)
_max_batch = click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="The largest batch that is checked and that a server may run; 1 where an imported graph fixes it.",
)

_output_kind = click.option(
    "--output-kind",
    type=click.Choice(["logits", "probabilities", "independent", "independent-logits"]),
    help="What the scores are: of classes that exclude each other, before softmax or after it; or "
    "independent, each of its own class (multi-label, binary), after a sigmoid or before it. By default "
    "logits of torchvision's and timm's networks; of other graphs found out by reading and running them.",
)


@click.command("export")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@_repository
@click.option(
    "--weights",
    metavar="pretrained|untrained|NAME|FILE",
    default="pretrained",
    show_default=True,
    help="The published weights; seeded random numbers; published ones by their full name, such as "
    "ResNet50_Weights.IMAGENET1K_V1; or a file with a state dict: safetensors, or what torch.save wrote.",
)
@click.option(
    "--state-dict-key",
    metavar="KEY",
    default="",
    help="Of a weights file: which state dict in it to take, such as ema; by default the one that fits.",
)
@click.option(
    "--ignore-keys",
    metavar="PATTERN",
    multiple=True,
    help="Of a weights file: keys that play no part in inference, such as 'aux_head.*'. May be given again.",
)
@click.option(
    "--builder",
    metavar="KEY=VALUE",
    multiple=True,
    help="Of a weights file: an option of torchvision's builder that the file does not tell, such as "
    "transform_input=false. May be given again.",
)
@click.option(
    "--labels",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Class labels: one per line, numbered, JSON, or with WordNet ids; their number sets the network's "
    "number of classes.",
)
@click.option(
    "--preprocess",
    metavar="imagenet|WEIGHTS|FILE",
    default="",
    help="How images were prepared for the weights, if not as for the published ones: torchvision's usual "
    "way; as for weights such as ResNet50_Weights.IMAGENET1K_V1; or as a file says: TOML or JSON with the "
    "manifest's preprocessing fields, a timm model's config.json, a Hugging Face preprocessor_config.json.",
)
@click.option("--name", metavar="NAME", default="", help="Name in the repository, if not the network's.")
@_weights_mirror
@click.option(
    "--allow-untrained",
    is_flag=True,
    help="Where published weights cannot be had, export seeded random ones, and say so.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="int8, calibrated on images, is for CPUs; fp16 for CUDA. Both add their name to the model's.",
)
@click.option(
    "--calibration",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Images to calibrate int8 with, some hundred like those to be classified; by default our own: "
    "sample photographs, or for grey networks handwritten digits.",
)
@_output_kind
@_max_batch
@click.option("--force", is_flag=True, help="Export again though nothing seems to have changed.")
@_terminated_like_interrupted()
def export_command(
    *,
    models: tuple[str, ...],
    repository: Path,
    weights: str,
    state_dict_key: str,
    ignore_keys: tuple[str, ...],
    builder: tuple[str, ...],
    labels: Path | None,
    preprocess: str,
    name: str,
    weights_mirror: str | None,
    allow_untrained: bool,
    precision: str,
    calibration: Path | None,
    output_kind: str | None,
    max_batch: int,
    force: bool,
) -> None:
    """Export networks to ONNX, checked against torch, into a model repository.

    MODEL is efficientnet_lite0, lenet, nin or any torchvision classification network, such as resnet18;
    timm:NAME for a network of timm's; or package.module:function, which returns your own torch.nn.Module.
    A new version appears only after all its checks have passed, and only where something changed.
    """
    of_a_file = bool(state_dict_key or ignore_keys or builder)
    if of_a_file and (weights in {"pretrained", "untrained"} or PUBLISHED.fullmatch(weights)):
        raise click.UsageError("--state-dict-key, --ignore-keys and --builder go with --weights FILE")
    if len(models) > 1 and (name or labels or of_a_file or _is_file(weights)):
        raise click.UsageError("--name, --labels and a weights file go with a single MODEL")
    options = tuple(sorted(map(_key_and_value, builder)))
    if calibration and precision != "int8":
        raise click.UsageError("--calibration goes with --precision int8")

    # torch takes seconds to import; --help and usage errors do without.
    from vistazo_export.exporter import ExportRequest, export_model  # noqa: PLC0415
    from vistazo_export.networks.checkpoint_options import CheckpointOptions  # noqa: PLC0415
    from vistazo_export.report import Report  # noqa: PLC0415

    report = Report()
    # A network given twice is one model.
    architectures = list(dict.fromkeys(models))
    with report.watching(len(architectures)):
        for architecture in architectures:
            request = ExportRequest(
                architecture=architecture,
                repository=repository,
                name=name,
                weights=weights,
                checkpoint=CheckpointOptions(state_dict_key, ignore_keys, options),
                labels=labels,
                preprocess=preprocess,
                weights_mirror=weights_mirror,
                allow_untrained=allow_untrained,
                precision=precision,
                calibration=calibration,
                output_kind=output_kind or "",
                max_batch_size=max_batch,
                force=force,
            )
            started = time.monotonic()
            with report.model(request.model_name) as progress:
                try:
                    report.add_exported(export_model(request, progress))
                except ExportError as error:
                    report.add_failure(request.model_name, str(error), time.monotonic() - started)
    report.show()
    if report.failures:
        raise click.exceptions.Exit(1)


@click.command("import")
@click.argument("model", metavar="MODEL.onnx|FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--name", metavar="NAME", default="", help="Name in the repository; by default that of a FOLDER."
)
@_repository
@click.option(
    "--preprocess",
    metavar="imagenet|none|WEIGHTS|FILE",
    default="",
    help="How an image becomes the input: torchvision's usual way; not at all, so that the model is served "
    "over Open Inference only; as for weights such as ResNet50_Weights.IMAGENET1K_V1; or as a file says: "
    "TOML or JSON with the manifest's preprocessing fields, a timm model's config.json, a Hugging Face "
    "preprocessor_config.json.",
)
@click.option(
    "--labels",
    metavar="imagenet|FILE",
    default="",
    help="Class labels: one per line, numbered, JSON, or with WordNet ids; by default numbers.",
)
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Of the input.")
@click.option(
    "--size", metavar="HEIGHT[xWIDTH]", default="", help="Of the input, in pixels, where the graph takes any."
)
@click.option("--channels", type=click.Choice(["1", "3"]), help="Of the input: grey or colour.")
@click.option("--output", metavar="NAME", default="", help="The output that scores the classes.")
@_output_kind
@_max_batch
@click.option("--force", is_flag=True, help="Publish a new version though nothing has changed.")
@_terminated_like_interrupted()
def import_command(
    *,
    model: Path,
    name: str,
    repository: Path,
    preprocess: str,
    labels: str,
    layout: str | None,
    size: str,
    channels: str | None,
    output: str,
    output_kind: str | None,
    max_batch: int,
    force: bool,
) -> None:
    """Import an ONNX classifier that was made elsewhere into a model repository.

    The file is copied as it is, with the files of its weights, once it proved to run. Names, layout, type
    and batch are read from the graph; what it does not tell is asked for. A FOLDER is one from the Hugging
    Face hub: model.onnx or onnx/model.onnx beside config.json and preprocessor_config.json, which tell it.
    """
    if not name:
        if not model.is_dir():
            raise click.UsageError("--name goes with a MODEL.onnx: the model's name in the repository")
        name = model.resolve().name
    edges = _edges(size)
    from vistazo_export.foreign.image_input import ImageOptions  # noqa: PLC0415 - torch, as above
    from vistazo_export.importer import ImportRequest, import_model  # noqa: PLC0415
    from vistazo_export.report import Report  # noqa: PLC0415

    request = ImportRequest(
        model=model,
        name=name,
        repository=repository,
        preprocess=preprocess,
        labels=labels,
        image=ImageOptions(layout or "", edges, None if channels is None else int(channels)),
        output=output,
        output_kind=output_kind or "",
        max_batch_size=max_batch,
        force=force,
    )
    report = Report()
    started = time.monotonic()
    with report.watching(1), report.model(name) as progress:
        try:
            report.add_exported(import_model(request, progress), "imported")
        except ExportError as error:
            report.add_failure(name, str(error), time.monotonic() - started)
    report.show()
    if report.failures:
        raise click.exceptions.Exit(1)


def _is_file(weights: str) -> bool:
    """Say whether --weights means a file, there or not."""
    return weights not in {"pretrained", "untrained"} and not PUBLISHED.fullmatch(weights)


def _key_and_value(option: str) -> tuple[str, str]:
    key, equals, value = option.partition("=")
    if not (equals and key.isidentifier() and value):
        raise click.BadParameter(f"{option!r} is not such as transform_input=false", param_hint="--builder")
    return key, value


def _edges(size: str) -> tuple[int, int] | None:
    """Return height and width in `size`, such as "224" or "224x320"; None for an empty one."""
    if not size:
        return None
    edges = size.lower().split("x")
    if len(edges) > 2 or not all(edge.isascii() and edge.isdecimal() and int(edge) > 0 for edge in edges):
        raise click.BadParameter(f"{size!r} is not such as 224 or 224x320", param_hint="--size")
    return int(edges[0]), int(edges[-1])


@click.command("verify")
@click.argument("repository", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--weights",
    "weights_files",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="The file that a model was exported from with --weights FILE; without it, torch is not compared.",
)
@_weights_mirror
@_terminated_like_interrupted()
def verify_command(
    *, repository: Path, models: tuple[str, ...], weights_files: tuple[Path, ...], weights_mirror: str | None
) -> None:
    """Repeat the export's checks on the models in DIR, or on those named.

    Manifest, digest, graph, preprocessing, answers in different batches, and parity with torch where
    the weights can be had. Exit status 0 only if every version of every model passes.
    """
    from vistazo_export.report import Report  # noqa: PLC0415 - torch, as above
    from vistazo_export.verify import verify_model, versions_to_verify  # noqa: PLC0415

    try:
        warn = Progress(warning=lambda text: click.echo(f"Warning: {text}", err=True))
        versions = versions_to_verify(repository, models, warn)
    except ExportError as error:
        raise click.ClickException(str(error)) from error
    report = Report()
    with report.watching(len(versions)):
        for name, version in versions:
            with report.model(name) as progress:
                verification = verify_model(
                    repository,
                    name,
                    version,
                    weights_files=weights_files,
                    weights_mirror=weights_mirror,
                    progress=progress,
                )
                report.add_verified(verification)
    report.show()
    if report.failures:
        raise click.exceptions.Exit(1)
