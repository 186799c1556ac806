"""Addresses, tokens and runtime environments: what is decided before Ray is asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.connect import check_address, connect, find_token, runtime_env
from jobs.errors import ClusterUnreachable, SpecError


@pytest.mark.parametrize("address", ["auto", "head:6379", "127.0.0.1:6379"])
def test_addresses_of_clusters_pass(address):
    check_address(address)


@pytest.mark.parametrize("address", ["head", ":6379", "head:port", "head:70000", "head:0"])
def test_other_addresses_are_refused(address):
    with pytest.raises(SpecError, match="host:port"):
        check_address(address)


def test_a_job_servers_url_is_pointed_to_submit():
    with pytest.raises(SpecError, match="thresher submit --ray"):
        check_address("http://head:8265")


def test_nobody_there_is_said_quickly(monkeypatch):
    # Without it, a token of this machine would switch authentication on for the whole process.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterUnreachable, match=r"127\.0\.0\.1:1\b"), connect("127.0.0.1:1"):
        pass


def test_the_token_is_looked_for_in_rays_order(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert find_token({}) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    assert find_token({}) == "of-home"
    named = tmp_path / "token"
    named.write_text("of-file")
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(named)}) == "of-file"
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(named), "RAY_AUTH_TOKEN": "of-variable"}) == "of-variable"


def test_no_token_is_shown_where_authentication_is_off():
    assert find_token({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}) is None


def test_on_this_machine_modules_are_imported_where_they_lie(tmp_path):
    environment = {"PYTHONPATH": "/elsewhere"}
    made = runtime_env(tmp_path, (), local=True, inherited={}, environment=environment)
    assert made == {"env_vars": {"PYTHONPATH": f"{tmp_path}:/elsewhere"}}


def test_to_a_cluster_the_folder_travels_without_ballast(tmp_path):
    made = runtime_env(tmp_path, ("einops",), local=False, inherited={})
    assert made["working_dir"] == str(tmp_path)
    assert {".git/", ".venv/"} <= set(made["excludes"])
    assert made["pip"] == ["einops"]


def test_what_the_ray_job_has_brought_is_not_brought_again(tmp_path):
    made = runtime_env(tmp_path, ("einops",), local=False, inherited={"working_dir": "gcs://_ray_pkg_1.zip"})
    assert made == {"pip": ["einops"]}


def test_nothing_to_bring_is_nothing():
    assert runtime_env(None, (), local=True, inherited={}) == {}


def test_importing_the_package_imports_neither_ray_nor_torch():
    program = (
        "import cluster, cluster.connect, cluster.placement, cluster.workers, json, sys;"
        "print(json.dumps([name for name in ('ray', 'torch', 'deepspeed') if name in sys.modules]))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(output.stdout) == []


def test_the_gang_is_importable_without_torch():
    program = "import cluster.gang, sys; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "False"
