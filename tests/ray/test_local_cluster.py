"""A Ray of several nodes on this machine: up, in use, a node less, a node more, down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.local import LocalCluster
from jobs.errors import SpecError

THRESHER = [sys.executable, "-m", "orchestrator.cli"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster(home):
    """Of nodes with one CPU each, so that two workers are on two nodes."""
    with LocalCluster(nodes=3, cpus_per_node=1, home=home / "cluster") as cluster:
        yield cluster


def command(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"THRESHER_HOME": str(home)}
    return subprocess.run([*THRESHER, "cluster", *words], env=environment, capture_output=True, text=True, timeout=60)


def test_its_nodes_have_processes_and_addresses_of_their_own(cluster):
    assert cluster.nodes == {0: "127.0.0.2", 1: "127.0.0.3", 2: "127.0.0.4"}
    processes = [set(cluster.processes(node)) for node in cluster.nodes]
    assert all(processes)
    assert len(set.union(*processes)) == sum(map(len, processes)) == len(cluster.processes())


def test_a_second_one_is_refused_by_name(cluster, home):
    with pytest.raises(SpecError, match=f"up already, at {cluster.address}"):
        LocalCluster(home=home / "cluster")
    refused = command(home, "up", "--nodes", "2")
    assert refused.returncode == 2
    assert cluster.address in refused.stderr
    assert "Traceback" not in refused.stderr


def test_status_says_how_to_reach_it(cluster, home):
    document = json.loads(command(home, "status", "--json").stdout)
    assert document["address"] == cluster.address
    assert document["nodes"][0] == {"node": 0, "ip": "127.0.0.2"}
    assert document["environment"] == cluster.client_environment
    assert cluster.token_path.stat().st_mode & 0o077 == 0
    assert f"--address {cluster.address}" in command(home, "status").stdout


def test_a_node_can_be_lost_and_another_join(cluster):
    """What a training makes of it: tests/ray/test_long_training.py."""
    cluster.kill_node(2)
    assert cluster.processes(2) == []
    assert set(cluster.nodes) == {0, 1}
    assert cluster.add_node() == 3
    assert set(cluster.nodes) == {0, 1, 3}


@pytest.mark.parametrize(("number", "problem"), [(0, "the head"), (9, "no node 9")])
def test_what_cannot_be_killed(cluster, number, problem):
    with pytest.raises(ValueError, match=problem):
        cluster.kill_node(number)


def test_down_ends_what_somebody_else_has_started(cluster, home):
    """The last one: the cluster is gone afterwards."""
    processes = cluster.processes()
    names = [psutil.Process(number).name() for number in processes]
    assert names.count("ray::DashboardAgent") == names.count("ray::RuntimeEnvAgent") == names.count("raylet") == 3
    ended = command(home, "down", "--json")
    assert json.loads(ended.stdout)["processes"] == len(processes)
    assert cluster.processes() == []
    assert not [number for number in processes if psutil.pid_exists(number) and alive(number)]
    assert list((home / "cluster").iterdir()) == []
    gone = command(home, "status")
    assert gone.returncode == 3
    assert "thresher cluster up" in gone.stderr
    assert command(home, "down").returncode == 0


def alive(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
