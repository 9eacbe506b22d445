"""Commands that other packages add, with all, some or none of what they need installed."""

import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest
from click.testing import CliRunner

from vistazo_client.cli.plugins import PLUGIN_GROUP, VistazoGroup, installed_plugins


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Add a command `demo` whose module has this source; gives what runs the group."""
    monkeypatch.syspath_prepend(tmp_path)
    loaded = set(sys.modules)

    def add(source, *, module="demo_plugin", extra=" [server]"):
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        group = VistazoGroup("vistazo")
        group.find_plugins = lambda: [EntryPoint("demo", f"{module}:demo_command{extra}", PLUGIN_GROUP)]
        return lambda *arguments: CliRunner().invoke(group, arguments)

    yield add
    for name in set(sys.modules) - loaded:
        del sys.modules[name]


WORKS = """
    import click

    @click.command("demo")
    @click.option("--loud", is_flag=True)
    def demo_command(loud):
        "Say something."
        click.echo("HELLO" if loud else "hello")
"""
NEEDS_AT_IMPORT = "import a_missing_engine.session\n"
NEEDS_WHEN_RUN = """
    import click

    @click.command("demo")
    def demo_command():
        "Say something."
        import a_missing_engine.session
"""
INSTALL = (
    "Error: `vistazo demo` needs the Python package a_missing_engine, which is not installed: "
    "pip install 'vistazo[server]'\n"
)


def test_a_plugin_is_listed_and_runs_like_any_command(plugin):
    vistazo = plugin(WORKS)

    assert "demo  Say something." in vistazo("--help").output
    assert vistazo("demo", "--loud").output == "HELLO\n"


def test_a_plugin_that_cannot_be_imported_is_listed_with_what_to_install(plugin):
    result = plugin(NEEDS_AT_IMPORT)("--help")

    assert result.exit_code == 0
    assert "demo  needs: pip install 'vistazo[server]'" in result.output


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--models", "models", "-v", "x"]], ids=" ".join)
def test_a_plugin_that_cannot_be_imported_says_what_to_install(plugin, arguments):
    result = plugin(NEEDS_AT_IMPORT)("demo", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", INSTALL)


def test_a_package_that_is_first_missed_while_the_command_runs_is_said_the_same_way(plugin):
    vistazo = plugin(NEEDS_WHEN_RUN)

    assert "demo  Say something." in vistazo("--help").output
    result = vistazo("demo")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", INSTALL)


def test_a_plugin_without_an_extra_names_the_distribution(plugin):
    result = plugin(NEEDS_AT_IMPORT, extra="")("demo")

    assert result.stderr.endswith(": pip install 'vistazo'\n")


@pytest.mark.parametrize(
    "source",
    ["import vistazo_server.no_such_module\n", "import vistazo_missing\n", "import asyncio.no_such_module\n"],
    ids=["own module", "own package", "standard library"],
)
def test_a_module_of_our_own_that_is_missing_is_a_bug_and_not_hidden(plugin, source):
    result = plugin(source)("demo")

    assert isinstance(result.exception, ModuleNotFoundError)


def test_a_missing_package_of_a_command_that_is_no_plugin_is_a_bug_and_not_hidden():
    group = VistazoGroup("vistazo")
    group.find_plugins = list

    @group.command
    def broken():
        import a_missing_engine  # noqa: F401  never there

    assert isinstance(CliRunner().invoke(group, ["broken"]).exception, ModuleNotFoundError)


def test_a_plugin_that_is_no_command_is_a_bug_and_not_hidden(plugin):
    result = plugin("demo_command = 3\n")("demo")

    assert isinstance(result.exception, TypeError)
    assert "demo_plugin:demo_command" in str(result.exception)


def test_ctrl_c_in_a_plugin_exits_with_130(plugin):
    result = plugin("""
        import click

        @click.command("demo")
        def demo_command():
            raise KeyboardInterrupt
    """)("demo")

    assert (result.exit_code, result.output) == (130, "")


def test_every_installed_plugin_names_the_extra_that_it_needs():
    plugins = {each.name: each.extras for each in installed_plugins()}

    assert plugins["export"] == ["export"]
    assert plugins["serve"] == ["server"]


def test_help_lists_everything_and_imports_no_engine():
    code = textwrap.dedent("""
        import sys
        from vistazo_client.cli import main
        main(["--help"], standalone_mode=False)
        sys.exit(sorted({"torch", "torchvision", "onnx", "onnxruntime", "PIL"} & set(sys.modules)) or 0)
    """)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (process.returncode, process.stderr) == (0, "")
    for command in ("classify", "models", "health", "export", "serve"):
        assert f"\n  {command}" in process.stdout
