"""Where a run listens and who may connect: what is decided without Ray, and that what the user has set stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from ray._private import ray_constants

from unify_posttrain.runs import listeners
from unify_posttrain.trainer import cluster

ADDRESS, TOKEN = "RAY_ADDRESS", "RAY_AUTH_TOKEN"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster and no settings of this machine; what a test adds to the environment goes."""
    for name in (ADDRESS, TOKEN, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", listeners.RAY_BEYOND_LOOPBACK, listeners.GLOO_INTERFACE):
        monkeypatch.setenv(name, "x")  # remembered, to be put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(cluster.services, "find_bootstrap_address", lambda _: None)


def config(nodes: int = 1, **ray_init: object) -> DictConfig:
    return OmegaConf.create({"trainer": {"nnodes": nodes}, "ray_kwargs": {"ray_init": ray_init}})


def state() -> tuple[bool, str | None, str | None, bool]:
    names = (listeners.RAY_BEYOND_LOOPBACK, listeners.GLOO_INTERFACE)
    return ray_constants.ENABLE_RAY_CLUSTER, *(os.environ.get(name) for name in names), bool(os.environ.get(TOKEN))


def test_one_node_stays_on_loopback_with_a_token_of_its_own() -> None:
    with cluster.own_cluster(config()):
        assert state() == (False, "0", "lo", True)
        token = os.environ[TOKEN]
    assert len(token) == 64 and int(token, 16)
    assert state() == (True, None, None, True), "the next run of a sweep shares the token, which Ray reads once"
    with cluster.own_cluster(config()):
        assert os.environ[TOKEN] == token


def test_several_nodes_listen_to_each_other() -> None:
    with cluster.own_cluster(config(nodes=2)):
        assert state() == (True, None, None, True)


def test_an_address_that_the_user_gives_is_obeyed() -> None:
    with cluster.own_cluster(config(_node_ip_address="10.0.0.7")):
        assert state() == (True, None, None, True)


@pytest.mark.parametrize("where", ["configuration", "environment", "left by ray start"])
def test_a_cluster_that_is_there_is_joined_as_it_is(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"address": "10.0.0.1:6379"} if where == "configuration" else {}
    if where == "environment":
        monkeypatch.setenv(ADDRESS, "10.0.0.1:6379")
    if where == "left by ray start":
        monkeypatch.setattr(cluster.services, "find_bootstrap_address", lambda _: "10.0.0.1:6379")
    with cluster.own_cluster(config(**given)):
        assert state() == (True, None, None, False)


def test_a_local_address_is_no_cluster_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, "10.0.0.1:6379")
    assert not cluster.joins_cluster({"address": "local"}) and cluster.joins_cluster({"address": "auto"})


@pytest.mark.parametrize(
    ("environment", "made"),
    [
        ({}, True),
        ({"RAY_AUTH_MODE": "token"}, True),
        ({"RAY_AUTH_MODE": "disabled"}, False),
        ({"RAY_AUTH_TOKEN": "mine"}, False),
        ({"RAY_AUTH_TOKEN_PATH": "/a/file"}, False),
    ],
)
def test_the_users_way_of_authentication_stays(environment: dict[str, str], made: bool) -> None:
    changed = dict(environment)
    listeners.ensure_token(changed)
    assert (changed.keys() - environment.keys() == {TOKEN}) if made else changed == environment


def test_switches_that_the_user_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(listeners.GLOO_INTERFACE, "ib0")
    monkeypatch.setenv(listeners.RAY_BEYOND_LOOPBACK, "1")
    with cluster.own_cluster(config()):
        assert state()[:3] == (True, "1", "ib0")
    assert os.environ[listeners.GLOO_INTERFACE] == "ib0"


def test_what_ray_offers_is_what_we_rely_on() -> None:
    """Names inside of Ray that are ours to know: the switch for loopback, and where a cluster of `ray start` is remembered."""
    from ray._private import services

    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == listeners.RAY_BEYOND_LOOPBACK
    assert callable(services.find_bootstrap_address)
