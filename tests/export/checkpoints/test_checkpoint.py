"""A user's own weights and labels."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vistazo_export.checkpoints.checkpoint import fit_state_dict, read_state_dict
from vistazo_export.errors import WeightsError
from vistazo_export.networks.lenet import LeNet


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in LeNet().state_dict().items()}


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}]
)
def test_a_state_dict_is_found_bare_or_inside_a_checkpoint(tmp_path: Path, wrap: Callable[[dict], dict]):
    state = LeNet().state_dict()
    torch.save(wrap(state), tmp_path / "weights.pth")

    read = read_state_dict(tmp_path / "weights.pth")

    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_a_safetensors_file_is_read(tmp_path: Path):
    state = LeNet().state_dict()
    save_file(state, tmp_path / "weights.safetensors")

    assert read_state_dict(tmp_path / "weights.safetensors").keys() == state.keys()


class Bomb:
    """Runs code when it is unpickled carelessly."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(pickle.dumps({"weight": Bomb()}))

    with pytest.raises(WeightsError, match="no file of plain weights") as error:
        read_state_dict(Path("evil.pth"))
    assert not Path("exploded").exists()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"GIF89a not weights at all", b"PK\x03\x04 a zip that ends"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)

    with pytest.raises(WeightsError, match="weights") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_strange_suffix_are_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"no weights file .*gone\.pth"):
        read_state_dict(tmp_path / "gone.pth")
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"weights\.onnx: weights files end in"):
        read_state_dict(tmp_path / "weights.onnx")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "weights.pth")

    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "model.", "module.backbone.", "model.module."]
)
def test_prefixes_that_keep_the_keys_from_fitting_are_dropped(prefix: str):
    state = prefixed(prefix)
    network = LeNet()
    fit_state_dict(network, state, origin="weights.pth")

    assert torch.equal(network.classifier[3].weight, state[f"{prefix}classifier.3.weight"])


def test_a_prefix_that_belongs_to_the_network_stays():
    network = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 3)})
    fit_state_dict(network, {"model.weight": torch.ones(3, 2), "model.bias": torch.ones(3)}, origin="f")

    assert torch.equal(network["model"].weight, torch.ones(3, 2))


def test_keys_that_do_not_fit_are_named():
    state = LeNet().state_dict()
    del state["features.0.bias"]
    state["extra"] = torch.zeros(1)

    with pytest.raises(WeightsError, match=r"missing features\.0\.bias; unexpected extra"):
        fit_state_dict(LeNet(), state, origin="w.pth")


def test_only_the_first_few_of_many_misfits_are_named():
    state = {f"layer{number}.weight": torch.zeros(1) for number in range(200)}

    with pytest.raises(WeightsError, match="and 195 more") as error:
        fit_state_dict(LeNet(), state, origin="w.pth")
    assert len(str(error.value)) < 600


def test_another_number_of_classes_points_to_the_labels():
    with pytest.raises(WeightsError, match=r"classifier\.3\.weight 3×84 for 10×84.*--labels FILE"):
        fit_state_dict(LeNet(), LeNet(3).state_dict(), origin="w.pth")


def test_a_network_that_weights_do_not_fit_is_left_as_it_was():
    network = LeNet()
    before = network.features[0].weight.clone()
    with pytest.raises(WeightsError):
        fit_state_dict(network, LeNet(3).state_dict(), origin="w.pth")

    assert torch.equal(network.features[0].weight, before)
