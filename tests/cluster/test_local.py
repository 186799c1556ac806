"""A local cluster's files and refusals, without a cluster."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import local
from cluster.local import LocalCluster, cluster_home
from jobs.errors import ClusterUnreachable, SpecError

STATE = {"id": "of nobody", "address": "127.0.0.2:6379", "dashboard": None, "cpus_per_node": 1}


def test_where_it_is_kept(monkeypatch):
    assert cluster_home({"THRESHER_HOME": "/somewhere"}) == Path("/somewhere/cluster")
    assert cluster_home({}) == Path.home() / ".thresher" / "cluster"


@pytest.mark.parametrize(("numbers", "key"), [((0, 2), "--nodes"), ((201, 2), "--nodes"), ((2, 0), "--cpus-per-node")])
def test_numbers_out_of_range_are_refused(tmp_path, numbers, key):
    with pytest.raises(SpecError, match=f"{key}: out of range"):
        LocalCluster(*numbers, home=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nobody_is_found_where_nobody_was(tmp_path):
    assert LocalCluster.find(tmp_path) is None


def test_a_damaged_state_is_said_to_be_so(tmp_path):
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(ClusterUnreachable, match="damaged"):
        LocalCluster.find(tmp_path)


def test_what_a_dead_one_left_is_removed(tmp_path):
    temp = tmp_path / "ray"
    temp.mkdir()
    (tmp_path / "cluster.json").write_text(json.dumps(STATE | {"temp_dir": str(temp), "nodes": [0, 1]}))
    (tmp_path / "token").write_text("secret")
    found = LocalCluster.find(tmp_path)
    assert found is not None
    assert (found.nodes, found.processes()) == ({}, [])
    found.stop()
    found.stop()
    assert list(tmp_path.iterdir()) == []


def test_processes_are_found_by_their_mark_whoever_their_parent_is():
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    environment = {local._CLUSTER: "a test's", local._NODE: "4"}
    subprocess.run([sys.executable, "-c", program], env=environment, start_new_session=True, check=True)
    state = local.State("a test's", "", None, "/nowhere", 1)
    ((process, node),) = local._marked(state)
    assert node == 4
    local._kill(state, 3)
    assert process.is_running()
    local._kill(state, 4)
    assert local._marked(state) == []


def test_who_wrote_over_its_mark_is_found_by_the_log_that_it_has_open(tmp_path):
    state = local.State("a test's", "", None, str(tmp_path / "temp"), 1)
    sleeper = tmp_path / "ray::Agent"
    shutil.copy("/bin/sleep", sleeper)
    processes = []
    for folder in ("temp/3", "temp/node", "temperature/3"):
        (tmp_path / folder).mkdir(parents=True)
        with open(tmp_path / folder / "agent.log", "wb") as log:
            processes.append(subprocess.Popen([sleeper, "60"], env={}, stdout=log))
    try:
        assert [(process.pid, node) for process, node in local._marked(state)] == [(processes[0].pid, 3)]
        local._kill(state, None)
        assert local._marked(state) == []
        assert [process.poll() for process in processes[1:]] == [None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait(10)


def test_a_node_that_does_not_start_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(local.sys, "executable", "/bin/false")
    with pytest.raises(ClusterUnreachable, match="node 0 did not start: no reason given"):
        LocalCluster(1, home=tmp_path)
    assert list(tmp_path.iterdir()) == []
