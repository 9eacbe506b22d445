"""Each setting has a default, a variable and a flag; the flag wins."""

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from vistazo_server.cli import serve_command
from vistazo_server.errors import StartupError
from vistazo_server.repository.versions import VersionPolicy
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
        ("model_control", "manual"),
        ("poll_seconds", 0),
        ("version_policy", "newest"),
        ("load", "vgg16"),
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


@pytest.fixture
def model_settings(tmp_path):
    def write(text):
        path = tmp_path / "models.toml"
        path.write_text(text)
        return path

    return write


def test_a_model_may_have_settings_of_its_own(model_settings):
    settings = Settings(
        queue_limit=9, model_settings=model_settings("[vgg16]\nqueue_limit = 3\nslo_ms = 250.5\n")
    )

    assert (settings.for_model("vgg16").queue_limit, settings.for_model("vgg16").slo_ms) == (3, 250.5)
    assert settings.for_model("vgg16").max_batch_size == settings.max_batch_size
    assert settings.for_model("resnet18").queue_limit == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[vgg16]\nqueue = 3", r"\[vgg16\]: expected a table of .*queue_limit.*, got queue"),
        ("vgg16 = 3", r"\[vgg16\]: expected a table of .*, got 3"),
        ("[vgg16]\nqueue_limit = 0", r"\[vgg16\] queue_limit: .*greater than 0, got 0"),
        ('[vgg16]\njpeg_decoding = "fast"', r"\[vgg16\] jpeg_decoding: .*'exact' or 'reduced', got 'fast'"),
        ("[vgg16", "cannot be read"),
    ],
)
def test_model_settings_that_make_no_sense_are_refused(model_settings, text, message):
    with pytest.raises(StartupError, match=message):
        Settings(model_settings=model_settings(text)).check_models(["vgg16"])


def test_a_model_may_have_a_version_policy_of_its_own(model_settings):
    path = model_settings('[vgg16]\nversion_policy = "1,3"\n')
    settings = Settings(version_policy="all", model_settings=path)

    assert settings.policy_for("vgg16") == VersionPolicy(listed=("3", "1"))
    assert settings.policy_for("resnet18") == VersionPolicy()


def test_a_model_may_decode_jpegs_in_a_way_of_its_own(model_settings):
    settings = Settings(model_settings=model_settings('[vgg16]\njpeg_decoding = "reduced"\n'))

    assert settings.for_model("vgg16").jpeg_decoding == "reduced"
    assert settings.for_model("resnet18").jpeg_decoding == "exact"


def test_a_version_policy_of_a_model_that_makes_no_sense_is_refused_with_its_place(model_settings):
    settings = Settings(model_settings=model_settings('[vgg16]\nversion_policy = "newest"\n'))

    with pytest.raises(StartupError, match=r"\[vgg16\] version_policy: .*expected latest:N .*, got 'newest'"):
        settings.check_models(["vgg16"])


@pytest.mark.parametrize(
    ("control", "load", "names"),
    [
        ("none", "", None),
        ("poll", "", None),
        ("explicit", "", []),
        ("explicit", "vgg16, lenet", ["vgg16", "lenet"]),
        ("explicit", "*", None),
    ],
)
def test_what_is_loaded_at_the_start_follows_the_model_control(control, load, names):
    assert Settings(model_control=control, load=load).models_to_load == names


def test_all_models_and_a_name_together_are_refused():
    with pytest.raises(ValidationError, match=r"expected \* alone, or names"):
        Settings(model_control="explicit", load="*,vgg16")


def test_settings_for_a_model_that_is_not_there_are_refused(model_settings):
    settings = Settings(model_settings=model_settings("[vgg61]\nqueue_limit = 3"))

    with pytest.raises(StartupError, match=r"\[vgg61\] is not in the repository; it has lenet, vgg16"):
        settings.check_models(["lenet", "vgg16"])


def test_a_missing_file_of_model_settings_is_refused(tmp_path):
    with pytest.raises(StartupError, match="cannot be read"):
        Settings(model_settings=tmp_path / "missing.toml").for_model("any")


# Reflection


@pytest.mark.parametrize(
    ("listen", "tls", "asked", "answers"),
    [
        ("127.0.0.1:8001", False, None, True),
        ("localhost:8001", False, None, True),
        ("[::1]:8001", False, None, True),
        ("0.0.0.0:8001", False, None, False),
        ("[::]:8001", False, None, False),
        ("inference.example:8001", False, None, False),
        ("0.0.0.0:8001", True, None, True),
        ("0.0.0.0:8001", False, True, True),
        ("127.0.0.1:8001", True, False, False),
    ],
)
def test_reflection_is_off_in_plaintext_where_others_reach_it_unless_asked_for(listen, tls, asked, answers):
    files = {"tls_certificate": "server.crt", "tls_key": "server.key"} if tls else {}

    assert Settings(listen=listen, reflection=asked, **files).answers_reflection is answers
