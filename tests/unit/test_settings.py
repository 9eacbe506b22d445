"""Each setting has a default, a variable and a flag; the flag wins."""

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from vistazo_server.cli import serve_command
from vistazo_server.settings import Settings


def test_a_variable_overrides_the_default_and_a_flag_the_variable(monkeypatch):
    monkeypatch.setenv("VISTAZO_QUEUE_LIMIT", "7")

    assert Settings().queue_limit == 7
    assert Settings(queue_limit=8).queue_limit == 8


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_help_with_its_variable(name):
    help_text = CliRunner().invoke(serve_command, ["--help"], terminal_width=400).output

    assert f"--{name.replace('_', '-')}" in help_text
    assert f"[env: VISTAZO_{name.upper()};" in help_text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("listen", "8001"),
        ("listen", ""),
        ("listen", "localhost:http"),
        ("metrics_listen", "127.0.0.1:65536"),
        ("queue_limit", 0),
        ("max_message_mb", 2048),
        ("device", "tpu"),
        ("queue_delay_ms", -1),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(ValidationError):
        Settings(**{field: value})


def test_a_refused_flag_is_explained_in_one_line_that_names_it():
    result = CliRunner().invoke(serve_command, ["--queue-limit", "many"])

    assert result.exit_code == 2
    assert "--queue-limit (VISTAZO_QUEUE_LIMIT)" in result.output
    assert "got 'many'" in result.output
    assert "Traceback" not in result.output


def test_an_empty_metrics_address_turns_the_endpoint_off():
    assert Settings(metrics_listen="").metrics_listen == ""
