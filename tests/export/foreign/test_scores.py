"""What the scores of an imported graph are is found out by where they come from, not by how a few look."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from support.endings import ended, node, own_sigmoid, rounded
from vistazo_export.checks.sample_images import sample_images
from vistazo_export.cli import import_command
from vistazo_export.foreign.scores import KINDS
from vistazo_export.publishing.manifest import read_manifest
from vistazo_proto.manifest_pb2 import ModelManifest, Output

Import = Callable[..., Result]
MICROSOFT = {"domain": "com.microsoft"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def import_graph(tmp_path: Path, models: Path, vistazo: Callable[..., Result]) -> Import:
    """Import a graph as the model "m", with as many labels as `labels` says."""

    def run(graph: onnx.ModelProto, *options: object, labels: int = 0) -> Result:
        path = tmp_path / "graph.onnx"
        onnx.save(graph, path)
        if labels:
            names = tmp_path / "labels.txt"
            names.write_text("\n".join(["no", "yes", "maybe", "never", "always"][:labels]))
            options = ("--labels", names, *options)
        return vistazo(
            "import", path, "--name", "m", "--models", models, "--preprocess", "imagenet", *options
        )

    return run


def manifest_of(models: Path) -> ModelManifest:
    return read_manifest(models / "m" / "1" / "manifest.json")


def complaint(result: Result, models: Path) -> str:
    """Return the one line in which an import was refused, having left nothing in the repository."""
    assert result.exit_code == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert not models.exists() or list(models.iterdir()) == []
    return error


HEADS = node("Split", ["logits"], ["left", "right"], axis=1, num_outputs=2)

INDEPENDENT = {
    "sigmoid": ended(node("Sigmoid", ["logits"], ["scores"])),
    "sigmoid, reshaped and renamed": ended(
        node("Sigmoid", ["logits"], ["s"]),
        node("Unsqueeze", ["s", "last_axis"], ["u"]),
        node("Transpose", ["u"], ["t"], perm=[0, 2, 1]),
        node("Flatten", ["t"], ["f"]),
        node("Identity", ["f"], ["scores"]),
    ),
    "sigmoid in float16": ended(
        node("Sigmoid", ["logits"], ["s"]),
        node("Cast", ["s"], ["scores"], to=TensorProto.FLOAT16),
        element=TensorProto.FLOAT16,
    ),
    "sigmoid in 8 bits": ended(node("Sigmoid", ["logits"], ["s"]), *rounded("s", "scores")),
    "sigmoid in 8 bits beyond 1": ended(
        node("Sigmoid", ["logits"], ["s"]),
        *rounded("s", "scores", "coarse"),
        bias=20,
        coarse_scale=np.float32(0.0079),
    ),
    "all in 8 bits, then reshaped": ended(
        *rounded("logits", "l", "wide"),
        node("Sigmoid", ["l"], ["s"]),
        *rounded("s", "d"),
        node("Unsqueeze", ["d", "middle_axis"], ["scores"]),
        dims=(1, 5),
    ),
    "a quantised sigmoid": ended(
        node("QuantizeLinear", ["logits", "wide_scale", "wide_zero"], ["q"]),
        node(
            "QLinearSigmoid",
            ["q", "wide_scale", "wide_zero", "unit_scale", "unit_zero"],
            ["s"],
            **MICROSOFT,
        ),
        node("DequantizeLinear", ["s", "unit_scale", "unit_zero"], ["scores"]),
    ),
    "a head for each label": ended(
        HEADS,
        node("Sigmoid", ["left"], ["a"]),
        node("Sigmoid", ["right"], ["b"]),
        node("Concat", ["a", "b"], ["scores"], axis=1),
    ),
    "a function of the model's own": ended(
        node("aten_sigmoid", ["logits"], ["scores"], domain="pkg.layers"), functions=[own_sigmoid()]
    ),
    "a half each, so that two sum to about 1": ended(
        node("Sigmoid", ["logits"], ["scores"]), classes=2, scale=1e-5, bias=2e-3
    ),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_sigmoids_are_independent_whatever_carries_them_and_that_is_said(
    import_graph: Import, models: Path, vistazo: Callable[..., Result], name: str
):
    done = import_graph(INDEPENDENT[name])

    assert done.exit_code == 0, done.stderr
    assert manifest_of(models).output.kind == Output.INDEPENDENT
    assert not manifest_of(models).output.binary
    (said,) = [line for line in done.stderr.splitlines() if "multi-label" in line]
    assert "ends in Sigmoid" in said
    assert "--output-kind says otherwise" in said
    assert vistazo("verify", models).exit_code == 0


PROBABILITIES = {
    "softmax in 8 bits": ended(node("Softmax", ["logits"], ["s"]), *rounded("s", "scores")),
    "softmax in fewer": ended(node("Softmax", ["logits"], ["s"]), *rounded("s", "scores", "coarse")),
    "softmax of 300 classes in 8 bits": ended(
        node("Softmax", ["logits"], ["s"]), *rounded("s", "scores", "coarse"), classes=300, scale=1e-4
    ),
    "softmax rounded by arithmetic": ended(
        node("Softmax", ["logits"], ["s"]),
        node("Mul", ["s", "steps"], ["m"]),
        node("Round", ["m"], ["r"]),
        node("Div", ["r", "steps"], ["scores"]),
        steps=np.float32(60),
    ),
    "softmax before the last reshape, in float16": ended(
        node("Softmax", ["logits"], ["s"]),
        node("Cast", ["s"], ["h"], to=TensorProto.FLOAT16),
        node("Unsqueeze", ["h", "middle_axis"], ["scores"]),
        dims=(1, 5),
        element=TensorProto.FLOAT16,
    ),
    "softmax over the first of two": ended(
        node("Unsqueeze", ["logits", "last_axis"], ["u"]),
        node("Softmax", ["u"], ["scores"], axis=1),
        dims=(5, 1),
    ),
    "a quantised softmax": ended(
        node("QuantizeLinear", ["logits", "wide_scale", "wide_zero"], ["q"]),
        node(
            "QLinearSoftmax",
            ["q", "wide_scale", "wide_zero", "unit_scale", "unit_zero"],
            ["s"],
            axis=-1,
            opset=18,
            **MICROSOFT,
        ),
        node("DequantizeLinear", ["s", "unit_scale", "unit_zero"], ["scores"]),
    ),
    "one sigmoid and what is left": ended(
        HEADS,
        node("Sigmoid", ["left"], ["p"]),
        node("Sub", ["one", "p"], ["rest"]),
        node("Concat", ["rest", "p"], ["scores"], axis=1),
        classes=2,
    ),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_a_softmax_stays_one_whatever_carries_or_rounds_it(
    import_graph: Import, models: Path, vistazo: Callable[..., Result], name: str
):
    done = import_graph(PROBABILITIES[name])

    assert done.exit_code == 0, done.stderr
    assert manifest_of(models).output.kind == Output.PROBABILITIES
    assert vistazo("verify", models).exit_code == 0


LOGITS = {
    "nothing": ended(node("Identity", ["logits"], ["scores"])),
    "nothing, within 0 to 1": ended(node("Identity", ["logits"], ["scores"]), scale=1e-5, bias=0.4),
    "nothing, within 0 to 1, in 8 bits": ended(*rounded("logits", "scores"), scale=1e-4, bias=0.4),
    "log softmax": ended(node("LogSoftmax", ["logits"], ["scores"])),
    "log softmax in 8 bits": ended(node("LogSoftmax", ["logits"], ["s"]), *rounded("s", "scores", "wide")),
    "relu": ended(node("Relu", ["logits"], ["scores"]), scale=1e-4, bias=0.5),
}


@pytest.mark.parametrize("name", LOGITS)
def test_what_no_operator_holds_to_a_range_is_logits(import_graph: Import, models: Path, name: str):
    done = import_graph(LOGITS[name])

    assert done.exit_code == 0, done.stderr
    assert manifest_of(models).output.kind == Output.LOGITS


DOUBTFUL = {
    "softmax over an axis of one": ended(
        node("Unsqueeze", ["logits", "middle_axis"], ["u"]),
        node("Softmax", ["u"], ["scores"], axis=1),
        dims=(1, 5),
    ),
    "that in 8 bits": ended(
        node("Unsqueeze", ["logits", "middle_axis"], ["u"]),
        node("Softmax", ["u"], ["s"], axis=1),
        *rounded("s", "scores"),
        dims=(1, 5),
    ),
    "softmaxes of two groups": ended(
        node("Reshape", ["logits", "groups"], ["g"]),
        node("Softmax", ["g"], ["s"]),
        node("Flatten", ["s"], ["scores"]),
        classes=4,
        groups=np.array([0, 2, 2]),
    ),
    "softmax without its background": ended(
        node("Softmax", ["logits"], ["s"]),
        node("Slice", ["s", "from", "to", "middle_axis"], ["scores"]),
        dims=(4,),
        **{"from": np.array([1]), "to": np.array([5])},
    ),
    "the mean of sigmoids": ended(
        HEADS,
        node("Sigmoid", ["left"], ["a"]),
        node("Sigmoid", ["right"], ["b"]),
        node("Add", ["a", "b"], ["sum"]),
        node("Mul", ["sum", "half"], ["scores"]),
        classes=6,
        dims=(3,),
    ),
    "what a sigmoid leaves": ended(node("Sigmoid", ["logits"], ["s"]), node("Sub", ["one", "s"], ["scores"])),
    "a sigmoid by hand": ended(
        node("Neg", ["logits"], ["n"]),
        node("Exp", ["n"], ["e"]),
        node("Add", ["one", "e"], ["sum"]),
        node("Div", ["one", "sum"], ["scores"]),
    ),
    "a hard sigmoid": ended(node("HardSigmoid", ["logits"], ["scores"])),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_real_doubt_is_refused_with_the_choices_named(import_graph: Import, models: Path, name: str):
    said = complaint(import_graph(DOUBTFUL[name]), models)

    assert "is not clear: it ends in" in said
    assert "--output-kind logits, probabilities, independent or independent-logits" in said
    assert import_graph(DOUBTFUL[name], "--output-kind", "independent").exit_code == 0
    assert manifest_of(models).output.kind == Output.INDEPENDENT


SCALED = {
    "softmax in percent": ended(
        node("Softmax", ["logits"], ["s"]), node("Mul", ["s", "hundred"], ["scores"]), hundred=np.float32(100)
    ),
    "that rounded": ended(
        node("Softmax", ["logits"], ["s"]),
        node("Mul", ["s", "hundred"], ["p"]),
        node("Round", ["p"], ["scores"]),
        hundred=np.float32(100),
    ),
    "sigmoids in bytes": ended(
        node("Sigmoid", ["logits"], ["s"]), node("Mul", ["s", "white"], ["scores"]), white=np.float32(255)
    ),
    "softmax by hand in percent": ended(
        node("Exp", ["logits"], ["e"]),
        node("ReduceSum", ["e", "last_axis"], ["sum"]),
        node("Div", ["e", "sum"], ["s"]),
        node("Mul", ["s", "hundred"], ["scores"]),
        hundred=np.float32(100),
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_probabilities_on_another_scale_are_not_taken_for_logits(
    import_graph: Import, models: Path, name: str
):
    said = complaint(import_graph(SCALED[name]), models)

    assert "probabilities on another scale, such as percentages" in said
    assert "scale them to 0 to 1 in the graph" in said


class Photographs(CalibrationDataReader):
    """The sample images, as the graphs here take them."""

    def __init__(self) -> None:
        arrays = [np.asarray(image.resize((8, 8)), np.uint8)[np.newaxis] for image in sample_images(3)[:4]]
        self.feeds = iter([{"pixels": array} for array in arrays])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize(
    ("ending", "kind"), [("Sigmoid", "INDEPENDENT"), ("Softmax", "PROBABILITIES"), ("Identity", "LOGITS")]
)
def test_what_onnx_runtime_quantises_keeps_its_kind(
    tmp_path: Path, import_graph: Import, models: Path, form: QuantFormat, ending: str, kind: str
):
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    onnx.save(ended(node(ending, ["logits"], ["scores"])), plain)
    quantize_static(plain, small, Photographs(), quant_format=form)
    done = import_graph(onnx.load(small))

    assert done.exit_code == 0, done.stderr
    assert manifest_of(models).output.kind == Output.Kind.Value(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_user_says_comes_first(import_graph: Import, models: Path, kind: str):
    endings = {"logits": "Identity", "probabilities": "Softmax", "independent": "HardSigmoid"}
    done = import_graph(
        ended(node(endings.get(kind, "Identity"), ["logits"], ["scores"])), "--output-kind", kind
    )

    assert done.exit_code == 0, done.stderr
    assert manifest_of(models).output.kind == KINDS[kind]


def test_the_command_takes_the_kinds_that_there_are():
    (option,) = [each for each in import_command.params if each.name == "output_kind"]

    assert list(option.type.choices) == list(KINDS)


@pytest.mark.parametrize(
    ("ending", "kind", "reason"),
    [
        ("Identity", "independent", "is no independent probabilities: its values are"),
        ("Sigmoid", "probabilities", "say --output-kind independent"),
        ("Identity", "probabilities", "is no probabilities: its rows sum to"),
    ],
)
def test_what_the_scores_cannot_be_is_refused(
    import_graph: Import, models: Path, ending: str, kind: str, reason: str
):
    graph = ended(node(ending, ["logits"], ["scores"]))

    assert reason in complaint(import_graph(graph, "--output-kind", kind), models)


@pytest.mark.parametrize(
    ("ending", "kind", "again"),
    [
        ("Sigmoid", "logits", "softmax"),
        ("Softmax", "logits", "softmax"),
        ("Sigmoid", "independent-logits", "a sigmoid"),
        ("Softmax", "independent-logits", "a sigmoid"),
    ],
)
def test_what_would_be_applied_twice_is_done_with_a_warning(
    import_graph: Import, models: Path, vistazo: Callable[..., Result], ending: str, kind: str, again: str
):
    done = import_graph(ended(node(ending, ["logits"], ["scores"])), "--output-kind", kind)
    verified = vistazo("verify", models)

    assert (done.exit_code, verified.exit_code) == (0, 0)
    for result in (done, verified):
        assert f"looks like probabilities already, and as {kind} gets {again} on top" in result.stderr


def test_a_probability_that_nothing_holds_to_its_range_is_taken_with_a_warning(import_graph: Import):
    graph = ended(node("Identity", ["logits"], ["scores"]), scale=1e-4, bias=0.4)
    done = import_graph(graph, "--output-kind", "independent")

    assert done.exit_code == 0
    assert "what lies outside is taken for 0 or 1" in done.stderr


# One score


def one_score(ending: str = "Sigmoid", dims: tuple[int, ...] = (1,), **options: object) -> onnx.ModelProto:
    """Return a graph with one score a sample."""
    shape = node("Reshape", ["s", "shape"], ["scores"])
    given = np.array([-1, *dims])
    return ended(node(ending, ["logits"], ["s"]), shape, classes=1, dims=dims, shape=given, **options)


@pytest.mark.parametrize("dims", [(1,), (), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize(
    ("ending", "said", "kind"),
    [
        ("Sigmoid", "", Output.INDEPENDENT),
        ("Sigmoid", "independent", Output.INDEPENDENT),
        ("HardSigmoid", "independent", Output.INDEPENDENT),
        ("Identity", "independent-logits", Output.INDEPENDENT_LOGITS),
    ],
)
def test_one_score_and_two_labels_are_a_binary_classifier(
    import_graph: Import,
    models: Path,
    vistazo: Callable[..., Result],
    dims: tuple[int, ...],
    ending: str,
    said: str,
    kind: int,
):
    options = ("--output-kind", said) if said else ()
    done = import_graph(one_score(ending, dims), *options, labels=2)

    assert done.exit_code == 0, done.stderr
    assert manifest_of(models).output == Output(tensor="scores", kind=kind, classes=2, binary=True)
    assert "the probability of 'yes', the second label, and 'no' has 1 minus that" in done.stderr
    assert vistazo("verify", models).exit_code == 0


@pytest.mark.parametrize("labels", [0, 1, 3])
@pytest.mark.parametrize("options", [(), ("--output-kind", "independent")])
def test_with_other_than_two_labels_one_score_is_refused_with_the_ways_named(
    import_graph: Import, models: Path, labels: int, options: tuple[str, ...]
):
    said = complaint(import_graph(one_score(), *options, labels=labels), models)

    for words in ("one score a sample, a binary classifier's", "two labels", "independent-logits", "none"):
        assert words in said


@pytest.mark.parametrize(
    ("ending", "options", "words"),
    [
        ("Identity", (), "ends in Add, not in Sigmoid"),
        ("Sigmoid", ("--output-kind", "logits"), "no row of logits"),
        ("Sigmoid", ("--output-kind", "probabilities"), "no row of probabilities"),
        ("Softmax", (), "makes 1 of any single score"),
        ("Softmax", ("--output-kind", "independent"), "makes 1 of any single score"),
        ("Identity", ("--output-kind", "independent"), "its values are"),
    ],
)
def test_one_score_that_is_not_known_to_be_a_probability_is_asked_about(
    import_graph: Import, models: Path, ending: str, options: tuple[str, ...], words: str
):
    graph = one_score(ending, bias=3)

    assert words in complaint(import_graph(graph, *options, labels=2), models)


@pytest.mark.parametrize(
    ("labels", "options", "output"),
    [
        (5, (), Output(tensor="scores", kind=Output.LOGITS, classes=5)),
        (2, (), Output(tensor="alarm", kind=Output.INDEPENDENT, classes=2, binary=True)),
        (2, ("--output", "alarm"), Output(tensor="alarm", kind=Output.INDEPENDENT, classes=2, binary=True)),
        (0, (), Output(tensor="scores", kind=Output.LOGITS, classes=5)),
    ],
)
def test_of_a_row_and_one_score_the_labels_choose(
    import_graph: Import, models: Path, labels: int, options: tuple[str, ...], output: Output
):
    graph = ended(
        node("Identity", ["logits"], ["scores"]),
        node("ReduceMean", ["logits", "last_axis"], ["mean"], keepdims=1),
        node("Sigmoid", ["mean"], ["alarm"]),
    )
    graph.graph.output.append(helper.make_tensor_value_info("alarm", TensorProto.FLOAT, ["batch", 1]))
    done = import_graph(graph, *options, labels=labels)

    assert done.exit_code == 0, done.stderr
    assert manifest_of(models).output == output


def test_a_manifest_that_says_binary_of_a_row_is_no_longer_verified(
    import_graph: Import, models: Path, vistazo: Callable[..., Result]
):
    import_graph(ended(node("Sigmoid", ["logits"], ["scores"]), classes=2), labels=2)
    path = models / "m" / "1" / "manifest.json"
    path.write_text(path.read_text().replace('"binary": false', '"binary": true'))
    done = vistazo("verify", models)

    assert done.exit_code == 1
    assert (
        "the manifest's output is 2 classes by one score in scores, the graph's 2 classes in sc"
        in done.stderr
    )
