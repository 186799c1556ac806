"""The service as a process: streams that break off, downloads that go on, the command line, an orderly end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.errors import ClusterUnreachable
from orchestrator.client import Client, Retries, ServiceRefused
from orchestrator.store import NewModel, Store
from tests.orchestrator.service.conftest import DIGITS
from tests.service.conftest import ROOT, Served, start


def thresher(served: Served, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "THRESHER_TOKEN": served.token}
    environment |= {"THRESHER_URL": url or served.url}
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=served.runs)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def client(served: Served) -> Any:
    with Client(served.url, served.token) as connected:
        yield connected


class TestStreams:
    def test_events_go_on_after_the_last_one_that_was_seen(self, served: Served, client: Client) -> None:
        job = client.submit(DIGITS)
        path = f"{served.url}/api/v1/jobs/{job.id}/events"
        headers = {"Authorization": f"Bearer {served.token}", "Accept": "text/event-stream"}
        with httpx.stream("GET", path, headers=headers, timeout=20, trust_env=False) as stream:
            lines = stream.iter_lines()
            first = next(line for line in lines if line.startswith("id: "))
        client.cancel(job.id)
        headers["Last-Event-ID"] = first.removeprefix("id: ")
        rest = httpx.get(path, headers=headers, timeout=20, trust_env=False).text
        assert first not in rest.splitlines()
        assert '"new":"CANCELLED"' in rest
        assert rest.endswith("event: end\ndata: {}\n\n")
        assert [event.fields["new"] for event in client.watch(job.id)] == ["QUEUED", "CANCELLED"]

    def test_a_service_that_starts_anew_is_followed_on(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process, said = start(tmp_path / "runs", tmp_path / "log", port)
        seen: list[str] = []
        try:
            with Client(said["url"], said["token"]) as client:
                job = client.submit(DIGITS)

                def watch() -> None:
                    with Client(said["url"], said["token"]) as other:
                        seen.extend(event.fields["new"] for event in other.watch(job.id))

                watching = threading.Thread(target=watch)
                watching.start()
                time.sleep(0.5)
                process.kill()
                process.wait()
                process, _ = start(tmp_path / "runs", tmp_path / "log", port)
                assert client.cancel(job.id).state == "CANCELLED"
                watching.join(30)
        finally:
            process.kill()
            process.wait()
        assert seen == ["QUEUED", "CANCELLED"]


def register(served: Served, client: Client, tmp: Path) -> tuple[str, bytes]:
    """A job whose model is registered, as the controller does it."""
    import hashlib

    job = client.submit(DIGITS | {"name": "digits"})
    folder = served.runs / job.id / "artifacts" / "dense"
    folder.mkdir(parents=True)
    content = os.urandom(3 << 20)
    (folder / "model.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    files = [{"path": "model.onnx", "bytes": len(content), "sha256": digest}]
    (folder / "artifact.json").write_text(json.dumps({"name": "dense", "files": files}))
    lease = served.store.acquire_lease("test", 60)
    assert lease is not None
    served.store.record_models(lease, job.id, [NewModel("digits", "dense", str(folder), "hash")])
    served.store.release_lease(lease)
    return job.id, content


class TestDownloads:
    def test_a_registered_model_is_fetched_by_its_alias(self, served: Served, client: Client, tmp_path: Path) -> None:
        job, content = register(served, client, tmp_path)
        assert client.set_alias("digits", "production", 1).aliases == ("production",)
        done = thresher(served, "model", "fetch", "digits@production", "--out", str(tmp_path / "got"), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["model"]["job"] == job
        assert (tmp_path / "got" / "model.onnx").read_bytes() == content
        client.fetch_artifact(job, "dense", tmp_path / "again")
        assert (tmp_path / "again" / "model.onnx").read_bytes() == content
        assert thresher(served, "model", "fetch", "digits@none").returncode == 2

    def test_a_download_that_broke_off_goes_on(self, served: Served, client: Client, tmp_path: Path) -> None:
        job, content = register(served, client, tmp_path)
        asked: list[str | None] = []

        class Broken(httpx.BaseTransport):
            """Cuts the first answer of the model's file off in its middle."""

            def __init__(self) -> None:
                self.real = httpx.HTTPTransport()

            def handle_request(self, request: httpx.Request) -> httpx.Response:
                answer = self.real.handle_request(request)
                if not request.url.path.endswith("model.onnx"):
                    return answer
                asked.append(request.headers.get("range"))
                if len(asked) > 1:
                    return answer

                class Cut(httpx.SyncByteStream):
                    def __iter__(self) -> Any:
                        yield answer.read()[: 1 << 20]
                        raise httpx.ReadError("cut off")

                return httpx.Response(answer.status_code, headers=answer.headers, stream=Cut())

        with Client(served.url, served.token, transport=Broken(), retries=Retries(first_s=0.01)) as other:
            other.fetch_artifact(job, "dense", tmp_path / "got")
        assert asked == [None, f"bytes={1 << 20}-"]
        assert (tmp_path / "got" / "model.onnx").read_bytes() == content


class TestCommandLine:
    def test_a_job_from_end_to_end(self, served: Served, tmp_path: Path) -> None:
        spec = tmp_path / "job.json"
        spec.write_text(json.dumps(DIGITS))
        submitted = thresher(served, "submit", str(spec), "--key", "k", "--json")
        job = json.loads(submitted.stdout)["id"]
        assert json.loads(thresher(served, "submit", str(spec), "--key", "k", "--json").stdout)["id"] == job
        assert job in thresher(served, "list", "--state", "queued").stdout
        assert "QUEUED" in thresher(served, "describe", job).stdout
        assert "CANCELLED" in thresher(served, "cancel", job).stdout
        assert thresher(served, "logs", "-f", job).returncode == 130
        again = thresher(served, "cancel", job, "--json")
        assert again.returncode == 2
        assert "is CANCELLED" in json.loads(again.stdout)["problems"][0]
        assert json.loads(thresher(served, "resume", job, "--json").stdout)["resumes"] == job
        assert thresher(served, "describe", "none").returncode == 2

    def test_what_is_wrong_and_who_does_not_answer(self, served: Served, tmp_path: Path) -> None:
        spec = tmp_path / "job.json"
        spec.write_text(json.dumps(DIGITS | {"resources": {"time_limit_s": 0}}))
        assert thresher(served, "submit", str(spec)).returncode == 2
        spec.write_text(json.dumps(DIGITS))
        assert thresher(served, "submit", str(spec), "--key", "zwölf mal").returncode == 2
        away = thresher(served, "list", url="http://127.0.0.1:9")
        assert away.returncode == 3
        assert "asked 6 times" in away.stderr

    def test_a_project_with_a_token_of_its_own(self, served: Served) -> None:
        assert thresher(served, "project", "set", "vision", "--quota", "CPU=2", "--lend", "CPU=1").returncode == 0
        made = thresher(served, "token", "create", "bob", "--project", "vision", "--role", "viewer", "--json")
        secret = json.loads(made.stdout)["secret"]
        with Client(served.url, secret) as client:
            assert [each.name for each in client.projects()] == ["vision"]
            with pytest.raises(ServiceRefused) as refused:
                client.submit(DIGITS)
            assert refused.value.status == 403
        assert secret not in served.log.read_text()


def test_one_key_from_many_clients_at_once_is_one_job(served: Served) -> None:
    def send(number: int) -> str:
        with Client(served.url, served.token) as client:
            return client.submit(DIGITS, key="all-at-once").id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(send, range(24)))) == 1


class TestStarting:
    def test_over_tls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        options = ("--host", "0.0.0.0", "--tls-cert", str(certificate), "--tls-key", str(key))
        process, said = start(tmp_path / "runs", tmp_path / "log", 0, *options)
        url = said["url"].replace("0.0.0.0", "127.0.0.1")
        try:
            assert url.startswith("https://")
            with pytest.raises(ClusterUnreachable), Client(url, said["token"], retries=Retries(tries=1)) as client:
                client.me()  # nobody vouches for it
            monkeypatch.setenv("THRESHER_CA", str(certificate))
            with Client(url, said["token"]) as client:
                assert client.me().role == "admin"
        finally:
            process.terminate()
            assert process.wait(20) == 0

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--host", "0.0.0.0"], "tokens would travel unencrypted"),
            (["--tls-cert", "nowhere.pem"], "go together"),
            (["--data-root", "nowhere"], "no such folder"),
        ],
    )
    def test_what_it_refuses_to_start_with(self, options: list[str], words: str, served: Served) -> None:
        done = thresher(served, "serve", "--api-only", "--runs", "elsewhere", *options)
        assert done.returncode == 2
        assert words in done.stderr

    def test_an_orderly_end_with_an_open_stream(self, tmp_path: Path) -> None:
        process, said = start(tmp_path / "runs", tmp_path / "log")
        with Client(said["url"], said["token"]) as client, Store.open(said["store"]) as store:
            job = client.submit(DIGITS)
            lost: list[Exception] = []

            def watch() -> None:
                retries = Retries(tries=2, first_s=0.1)
                try:
                    with Client(said["url"], said["token"], retries=retries) as other:
                        list(other.watch(job.id))
                except ClusterUnreachable as error:
                    lost.append(error)

            watching = threading.Thread(target=watch)
            watching.start()
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            watching.join(20)
            assert len(lost) == 1
            assert store.job(job.id) is not None
