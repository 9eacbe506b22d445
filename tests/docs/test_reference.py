"""The reference has all that there is.

A setting, an option, an RPC, a metric, a status or a method that is missing in the built pages fails here.
"""

import enum
import inspect
import re

import click
import pytest
from prometheus_client import CollectorRegistry

import vistazo_client
from vistazo_client.cli import main
from vistazo_client.errors import EXCEPTION_FOR
from vistazo_proto import classification_pb2, manifest_pb2, open_inference_pb2
from vistazo_server.errors import ServingError
from vistazo_server.settings import PER_MODEL, Settings
from vistazo_server.telemetry.metrics import Metrics


def in_one_line(text):
    return " ".join((text or "").split())


def metrics():
    """Return every metric with its kind and labels, also those that only a server with TLS has."""
    registry = CollectorRegistry()
    Metrics(registry).watch_certificate(lambda: 0.0)
    families = [(next(iter(family.collect())), family) for family in registry._collector_to_names]
    return {
        f"{shown.name}_total" if shown.type == "counter" else shown.name: (shown, tuple(family._labelnames))
        for shown, family in families
    }


def commands():
    """Return every command of `vistazo` by its words."""
    context = click.Context(main)
    found = {"vistazo": main}
    for name in main.list_commands(context):
        found[f"vistazo {name}"] = main.get_command(context, name)
    return found


def options():
    """Return every option that `--help` shows, and every argument, with its command."""
    for name, command in commands().items():
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                yield name, parameter


def messages(descriptor):
    """Return every message of a file by its name, the nested ones too, without what maps are made of."""
    found, waiting = {}, list(descriptor.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        if not message.GetOptions().map_entry:
            found[message.full_name.removeprefix(f"{descriptor.package}.")] = message
            waiting += message.nested_types
    return found


def serving_errors(base=ServingError):
    for kind in base.__subclasses__():
        yield kind
        yield from serving_errors(kind)


def public_names():
    """Return every public class and method, and every attribute, of the client as its anchor."""
    for name in vistazo_client.__all__:
        if name.startswith("__"):
            continue
        yield f"vistazo_client.{name}"
        thing = getattr(vistazo_client, name)
        if not inspect.isclass(thing):
            continue
        own = [kind for kind in thing.__mro__ if kind.__module__.startswith("vistazo_client")]
        members = {member for kind in own for member in (*vars(kind), *vars(kind).get("__annotations__", {}))}
        if issubclass(thing, enum.Enum):
            members = set(thing.__members__)
        yield from (f"vistazo_client.{name}.{member}" for member in members if not member.startswith("_"))


FILES = {
    "reference/classification-api": classification_pb2.DESCRIPTOR,
    "reference/open-inference-api": open_inference_pb2.DESCRIPTOR,
    "reference/manifest": manifest_pb2.DESCRIPTOR,
}
RPCS = [
    (name, rpc.name)
    for name, file in FILES.items()
    for service in file.services_by_name.values()
    for rpc in service.methods
]
FIELDS = [
    (name, message, field.name)
    for name, file in FILES.items()
    for message, descriptor in messages(file).items()
    for field in descriptor.fields
]


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_has_its_flag_variable_default_and_description(page, name):
    settings = page("reference/settings")
    field = Settings.model_fields[name]
    flag, variable = f"--{name.replace('_', '-')}", f"VISTAZO_{name.upper()}"
    default = "none" if field.default == "" else str(field.default)

    assert [flag, variable, default] in settings.rows
    assert name in settings.anchors
    (section,) = re.findall(
        rf"{re.escape(flag)}¶? {variable} · (.*?)(?= --[a-z-]+¶? VISTAZO_|$)", settings.text
    )
    assert f"default {default}" in section
    assert in_one_line(field.description.replace("`", "")) in section
    assert ("a model may have its own" in section) == (name in PER_MODEL)


def test_no_setting_is_described_that_is_gone(page):
    described = set(re.findall(r"\bVISTAZO_([A-Z_]+)\b", page("reference/settings").text))

    assert {name.lower() for name in described} == set(Settings.model_fields)


@pytest.mark.parametrize("name", list(commands()))
def test_every_command_has_its_place_and_its_help(page, name):
    cli = page("reference/cli")
    command = commands()[name]

    assert f"Usage: {name} " in cli.text
    summary = in_one_line(command.help).replace("`", "").split(".")[0]
    assert summary in cli.text


@pytest.mark.parametrize(
    ("command", "parameter"),
    list(options()),
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_option_is_in_the_help_of_its_command(page, command, parameter):
    text = page("reference/cli").text
    start = text.index(f"Usage: {command} ")
    following = text.find("Usage: vistazo", start + 1)
    help_text = text[start : following if following > 0 else None]

    if isinstance(parameter, click.Argument):
        assert parameter.make_metavar(click.Context(commands()[command])) in help_text
        return
    for flag in (*parameter.opts, *parameter.secondary_opts):
        assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", help_text), flag
    # A word at the end of a line may be broken there.
    assert re.sub(r"\s", "", parameter.help) in re.sub(r"\s", "", help_text)


@pytest.mark.parametrize(("file", "rpc"), RPCS)
def test_every_rpc_has_a_heading_and_says_what_it_does(page, file, rpc):
    shown = page(file)
    assert f"rpc-{rpc.lower()}" in shown.anchors

    (said,) = re.findall(rf"\b{rpc}¶ (?:a stream of )?\w+ → (?:a stream of )?\w+ (\S+ \S+ \S+)", shown.text)
    assert "→" not in said, f"{rpc} has no comment"


@pytest.mark.parametrize(("file", "message", "field"), FIELDS)
def test_every_field_of_every_message_has_a_row(page, file, message, field):
    descriptor = messages(FILES[file])[message]
    shown = page(file)
    number = str(descriptor.fields_by_name[field].number)

    assert f"type-{message.lower().replace('.', '-')}" in shown.anchors
    assert any(row[:2] == [field, number] for row in shown.rows)


@pytest.mark.parametrize("name", list(metrics()))
def test_every_metric_has_a_row_with_its_kind_labels_and_meaning(page, name):
    shown, labels = metrics()[name]

    assert [name, shown.type, ", ".join(labels), in_one_line(shown.documentation)] in page(
        "reference/metrics"
    ).rows


def test_no_row_is_of_a_metric_that_is_gone(page):
    named = {row[0] for row in page("reference/metrics").rows if re.match("(vistazo|grpc)_", row[0])}

    assert named == set(metrics())


@pytest.mark.parametrize("kind", list(serving_errors()), ids=lambda kind: kind.__name__)
def test_every_error_of_the_server_has_its_status_meaning_and_exception(page, kind):
    (row,) = [row for row in page("reference/statuses").rows if row[0] == kind.__name__]

    assert row[1] == kind.code.name
    assert row[2] == in_one_line(kind.__doc__).replace("`", "")
    assert row[3] == ("InvalidImageError" if kind.reason else EXCEPTION_FOR[kind.code].__name__)


@pytest.mark.parametrize("code", sorted({kind.code.name for kind in serving_errors()}))
def test_every_status_says_when_a_caller_sees_it(page, code):
    rows = [row for row in page("reference/statuses").rows if code in row[0].split(", ")]

    assert len(rows) == 1


@pytest.mark.parametrize("name", sorted(public_names()))
def test_every_public_name_of_the_client_is_described(page, name):
    assert name in page("reference/python").anchors


def test_nothing_private_of_the_client_is_described(page):
    assert [
        anchor for anchor in page("reference/python").anchors if re.match(r"vistazo_client.*\._", anchor)
    ] == []
