"""Models of the hub where the hub cannot be reached: from the cache, or an error at once."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub import constants

import hsd
from hsd import demo


class NoNetwork:
    """What huggingface_hub sends requests with: the hub is asked once, and nothing else is."""

    def __init__(self):
        self.asked = []

    def head(self, url, *, timeout):
        self.asked.append(url)
        assert timeout <= 5
        assert not constants.HF_HUB_OFFLINE
        raise OSError("no route to host")


@pytest.fixture
def network(tmp_path, monkeypatch):
    session = NoNetwork()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # which the tests set
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("hsd.models.hub.get_session", lambda: session)
    return session


@pytest.mark.parametrize("name", ["sdxl", "some-org/some-model"])
def test_a_model_that_is_not_in_the_cache(name, network):
    with pytest.raises(hsd.UnknownModel, match="this machine is offline.*not in the cache.*folder.*hf download"):
        hsd.load(name)
    assert network.asked == [constants.ENDPOINT]
    assert not constants.HF_HUB_OFFLINE


def test_a_name_that_no_model_of_the_hub_has(network):
    with pytest.raises(hsd.UnknownModel, match=r"cannot load some org/some-model: Repo id must use"):
        hsd.load("some org/some-model")


def test_a_model_that_is_in_the_cache(network, tmp_path):
    folder = tmp_path / "models--some-org--some-model"
    snapshot = folder / "snapshots" / ("a" * 40)
    shutil.copytree(demo.MODELS["demo"].folder, snapshot)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")  # as all models of the hub have
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    assert hsd.load("some-org/some-model").name == "some-org/some-model"
    assert network.asked == [constants.ENDPOINT]
    next((snapshot / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(hsd.UnknownModel, match="offline.*not all of it can be read from the cache"):
        hsd.load("some-org/some-model")


def test_offline_by_request(network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hsd.UnknownModel, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        hsd.load("sdxl")
    assert network.asked == []
    assert constants.HF_HUB_OFFLINE


def test_a_folder_needs_no_hub(network):
    hsd.load("demo")
    hsd.load(demo.MODELS["demo"].folder)
    assert network.asked == []
