"""Saving and loading: equal to the last bit, and every damage refused."""

import dataclasses
import json
import os
import pickle

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.io import load, save
from numpyro_rtk.networks import (
    EnergyMLP,
    EnergyModel,
    EnergySet,
    EnergyUNet,
    ScoreMLP,
    ScoreModel,
    ScoreUNet,
)
from numpyro_rtk.networks.mixture_base import mixture_base
from numpyro_rtk.networks.standardise import GaussianBase


class OwnNetwork(EnergyMLP):
    """A user's own class, with the built-in's arguments."""


def build_model(network_class, event_shape=(3,), width=8, depth=2):
    network = network_class(event_shape, width=width, depth=depth, key=jr.key(1))
    network = eqx.tree_at(
        lambda network: network.readout, network, network.readout + 0.125
    )
    dim = int(np.prod(event_shape))
    is_score = network_class is ScoreMLP
    return (ScoreModel if is_score else EnergyModel)(
        network=network,
        base=GaussianBase(jnp.eye(dim), jnp.linspace(0.3, 1.0, dim)),
        loc=jr.normal(jr.key(2), event_shape),
        scale=jnp.exp(jr.normal(jr.key(3), event_shape)),
        noise_range=(0.01, 25.0),
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.rtk"
    save(path, build_model(EnergyMLP))
    return path


@pytest.mark.parametrize("network_class", [EnergyMLP, ScoreMLP])
@pytest.mark.parametrize("event_shape", [(), (3, 2)])
@pytest.mark.parametrize(("width", "depth"), [(5, 1), (3, 4)])
def test_round_trip_is_equal_to_the_last_bit(
    tmp_path, network_class, event_shape, width, depth
):
    model = build_model(network_class, event_shape, width, depth)
    path = tmp_path / "model.rtk"
    save(path, model)
    assert os.listdir(tmp_path) == ["model.rtk"]
    again = load(path)
    assert type(again) is type(model)
    assert again.noise_range == model.noise_range
    assert bool(eqx.tree_equal(again, model))
    save(tmp_path / "again.rtk", again)
    assert (tmp_path / "again.rtk").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("network_class", "event_shape", "options"),
    [
        (EnergyUNet, (5, 4), {"channels": 3, "depth": 2}),
        (ScoreUNet, (4, 5, 2), {"channels": 2, "depth": 3}),
        (EnergySet, (3, 2), {"width": 5, "depth": 2}),
    ],
)
def test_round_trip_of_images_and_sets(tmp_path, network_class, event_shape, options):
    network = network_class(event_shape, **options, key=jr.key(1))
    like = build_model(
        ScoreMLP if network_class is ScoreUNet else EnergyMLP, event_shape
    )
    model = eqx.tree_at(lambda model: model.network, like, network)
    save(tmp_path / "model.rtk", model)
    again = load(tmp_path / "model.rtk")
    assert type(again.network) is network_class
    assert bool(eqx.tree_equal(again, model))


def test_round_trip_of_a_mixture_base(tmp_path):
    base = mixture_base([0.3, 0.7], np.eye(3)[:2], np.stack([np.eye(3)] * 2) * 0.2)
    model = dataclasses.replace(build_model(EnergyMLP), base=base, reach=4.5)
    path = tmp_path / "model.rtk"
    save(path, model)
    assert b'"version": 4' in path.read_bytes()
    assert bool(eqx.tree_equal(load(path), model))


def test_round_trip_of_a_base_alone(tmp_path):
    model = dataclasses.replace(build_model(ScoreMLP), uses_network=False)
    path = tmp_path / "model.rtk"
    save(path, model)
    assert b'"version": 6' in path.read_bytes()
    assert bool(eqx.tree_equal(load(path), model))


def test_loaded_model_computes_the_same(saved):
    x = jnp.ones((2, 3))
    call = eqx.filter_jit(lambda model, x: model.log_density_and_score(x, 0.1))
    got, expected = call(load(str(saved)), x), call(build_model(EnergyMLP), x)
    for one, two in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, two)


def test_header_is_one_line_of_json(saved):
    header = json.loads(saved.read_bytes().split(b"\n", 1)[0])
    assert header["format"] == "numpyro_rtk model"
    assert header["hyperparameters"] == {"event_shape": [3], "width": 8, "depth": 2}


def test_saving_replaces_a_file_or_leaves_it(saved, monkeypatch):
    before = saved.read_bytes()
    save(saved, build_model(EnergyMLP, width=4))
    after = saved.read_bytes()
    assert after != before

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(saved, build_model(EnergyMLP))
    assert saved.read_bytes() == after
    assert os.listdir(saved.parent) == [saved.name]


def test_own_network_needs_its_class(tmp_path):
    path, model = tmp_path / "own.rtk", build_model(OwnNetwork)
    save(path, model)
    with pytest.raises(ValueError, match=r"class 'OwnNetwork'.*networks=\[\.\.\.\]"):
        load(path)
    assert bool(eqx.tree_equal(load(path, networks=[OwnNetwork]), model))


class Undescribed(EnergyMLP):
    def hyperparameters(self):
        return {"array": jnp.ones(3)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"a": 1}, "EnergyModel or a ScoreModel; got dict"),
        (build_model(EnergyMLP).network, "EnergyModel or a ScoreModel; got EnergyMLP"),
        (build_model(Undescribed), r"`hyperparameters\(\)` of Undescribed must return"),
        (
            eqx.tree_at(lambda m: m.loc, build_model(EnergyMLP), jnp.ones(3) + 1j),
            "types.*got complex64 at .loc",
        ),
    ],
    ids=["foreign", "network", "hyperparameters", "complex"],
)
def test_what_cannot_be_saved(tmp_path, model, message):
    with pytest.raises(TypeError, match=message):
        save(tmp_path / "x.rtk", model)
    assert os.listdir(tmp_path) == []


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.rtk")


def edited(**changes):
    def edit(content):
        line, payload = content.split(b"\n", 1)
        header = {**json.loads(line), **changes}
        return json.dumps(header).encode() + b"\n" + payload

    return edit


def flipped(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "not a numpyro_rtk model file"),
        (lambda content: b"hello\nworld", "not a numpyro_rtk model file"),
        (lambda content: pickle.dumps([1, 2]), "not a numpyro_rtk model file"),
        (lambda content: b"[1, 2]\n", "not a numpyro_rtk model file"),
        (lambda content: b'{"format": "other"}\n', "not a numpyro_rtk model file"),
        (lambda content: content[:50], "not a numpyro_rtk model file"),
        (lambda content: content[:-1], "is truncated: its arrays need"),
        (lambda content: content.split(b"\n", 1)[0], "is truncated"),
        (lambda content: content + b"\0", "bytes after the end"),
        (flipped, "do not match their checksum"),
        (edited(version=7), "version 7; .* reads versions .1, 2, 3, 4, 5, 6.. Upgrade"),
        (edited(version=None), "version None"),
        (edited(arrays=None), "header is incomplete"),
        (edited(arrays=[{"name": "a", "dtype": "|O", "shape": [1]}]), "incomplete"),
        (edited(arrays=[{"name": "a", "dtype": "<f4", "shape": [-1]}]), "incomplete"),
        (edited(arrays=[{"name": "a", "dtype": [], "shape": [1]}]), "incomplete"),
        (edited(model="os.system"), "unknown model 'os.system'"),
        (edited(network="os.system"), "class 'os.system', not one of"),
        (edited(network="ScoreMLP"), "does not fit its own header"),
        (edited(hyperparameters={"event_shape": [3]}), "does not fit its own header"),
        (edited(hyperparameters={"width": 8}), "describes no model"),
        (edited(hyperparameters={"event_shape": [3], "width": -1}), "describes no mod"),
        (edited(noise_range=[0.02]), "describes no model"),
        (edited(noise_range=["a", "b"]), "describes no model"),
    ],
)
def test_damage_is_refused(saved, damage, message):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load(saved)
