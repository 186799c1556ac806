"""A table of attacks: each is refused with the right status, and nothing leaks."""

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from orchestrator.client.archive import pack_modules
from orchestrator.service.settings import Limits
from tests.orchestrator.service.conftest import DIGITS, LIMITS, World

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
)


def spec(**changes: Any) -> dict[str, Any]:
    return DIGITS | changes


class TestTokens:
    @pytest.mark.parametrize(
        "header",
        ["", "Bearer", "Bearer wrong", "Basic YWRtaW46YWRtaW4=", "Bearer thr_000000000000_x", "Bearer ' OR 1=1"],
    )
    @pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/tokens", "/api/v1/cluster", "/metrics"])
    def test_none_or_a_wrong_one(self, header: str, path: str, world: World) -> None:
        world.http.app.state.service.failures._rate = 0  # type: ignore[attr-defined]
        answer = world.http.get(path, headers={"Authorization": header} if header else {})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"

    def test_expired_and_revoked(self, world: World) -> None:
        old = world.token("admin", expires_ms=world.store.now_ms() - 1)
        assert old("GET", "/jobs").status_code == 401
        caller = world.token("admin")
        own = caller("GET", "/me").json()["id"]
        assert world.admin("DELETE", f"/tokens/{own}").status_code == 204
        assert caller("GET", "/jobs").status_code == 401

    def test_guessing_is_slowed_down(self, world: World) -> None:
        answers = [world.http.get("/api/v1/me", headers={"Authorization": "Bearer x"}) for _ in range(25)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert world.admin("GET", "/me").status_code == 200

    @pytest.mark.parametrize(
        ("role", "method", "path", "body"),
        [
            ("viewer", "POST", "/jobs", DIGITS),
            ("viewer", "POST", "/jobs/{job}/cancel", None),
            ("viewer", "POST", "/jobs/{job}/resume", None),
            ("viewer", "PUT", "/models/p/m/aliases/production", {"version": 1}),
            ("submitter", "GET", "/tokens", None),
            ("submitter", "POST", "/tokens", {"name": "x", "role": "admin"}),
            ("submitter", "PUT", "/projects/p", {}),
            ("admin", "PUT", "/projects/p", {}),  # of one project alone
            ("admin", "DELETE", "/projects/p", None),
        ],
    )
    def test_a_role_that_does_not_suffice(self, role: str, method: str, path: str, body: Any, world: World) -> None:
        caller = world.token(role, "p")
        job = world.submit(project="p")
        answer = caller(method, path.format(job=job), json=body)
        assert answer.status_code == 403, answer.text

    def test_a_project_admin_makes_tokens_of_its_project_alone(self, world: World) -> None:
        caller = world.token("admin", "p")
        assert caller("POST", "/tokens", json={"name": "x", "role": "viewer"}).json()["project"] == "p"
        assert caller("POST", "/tokens", json={"name": "x", "role": "viewer", "project": "default"}).status_code == 404
        assert {each["project"] for each in caller("GET", "/tokens").json()["tokens"]} == {"p"}

    def test_no_secret_is_kept_or_logged(self, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("DEBUG", logger="orchestrator"):
            made = world.admin("POST", "/tokens", json={"name": "x", "role": "viewer"}).json()
            world.admin("GET", f"/jobs?name={made['secret']}")
        listed = world.admin("GET", "/tokens").text
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("thresher.db*"))
        for secret in (made["secret"], world.admin.secret):
            assert secret not in listed
            assert secret.encode() not in stored
            assert not any(secret in each.getMessage() for each in caplog.records if "orchestrator" in each.name)


class TestOtherProjects:
    def test_their_things_are_not_there(self, world: World) -> None:
        mine, theirs = world.token("admin", "mine"), world.token("admin", "theirs")
        job = world.submit(theirs, name="secret-job")
        folder = world.run_dir(job) / "artifacts" / "dense"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"secret")
        token = theirs("GET", "/me").json()["id"]
        places = [
            ("GET", f"/jobs/{job}{rest}") for rest in ("", "/logs", "/events", "/metrics", "/artifacts", "/report")
        ]
        places += [("GET", f"/jobs/{job}/artifacts/dense/model.onnx"), ("POST", f"/jobs/{job}/cancel")]
        places += [("POST", f"/jobs/{job}/resume"), ("GET", "/projects/theirs"), ("GET", "/models/theirs/m/1")]
        places += [("GET", "/jobs?project=theirs"), ("GET", "/models?project=theirs"), ("DELETE", f"/tokens/{token}")]
        for method, path in places:
            answer = mine(method, path)
            assert answer.status_code == 404, (path, answer.text)
            assert "secret-job" not in answer.text.replace(job, "")
        assert mine("GET", "/jobs").json()["jobs"] == []
        assert job not in mine("GET", "/events").text
        assert mine("GET", "/cluster").json()["jobs"] == {}
        assert theirs("GET", f"/jobs/{job}/artifacts/dense/model.onnx").content == b"secret"

    def test_a_job_for_another_project(self, world: World) -> None:
        mine = world.token("submitter", "mine")
        world.store.project("theirs")
        for project in ("default", "no-such"):
            assert mine("POST", "/jobs", json=spec(project=project)).status_code == 404
        assert mine("POST", "/jobs", json=DIGITS).json()["project"] == "mine"

    def test_figures_of_everything_need_a_token_of_everything(self, world: World) -> None:
        assert world.token("viewer", "p")("GET", "//metrics").status_code == 403
        assert b"thresher_jobs" in world.token("viewer")("GET", "//metrics").content


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        ["../secret", "../../secret", "/etc/passwd", "%2e%2e/secret", "..%2fsecret", "a/../../secret", "link", "folder",
         "linked/secret", "nul%00", "x" * 2000, "pipe", ".", ""],
    )  # fmt: skip
    def test_only_files_of_the_artifact(self, path: str, world: World) -> None:
        job = world.submit()
        folder = world.run_dir(job) / "artifacts" / "dense"
        (folder / "folder").mkdir(parents=True)
        (folder.parent / "secret").write_text("secret")
        (folder / "link").symlink_to("/etc/passwd")
        (folder / "linked").symlink_to(folder.parent)
        os.mkfifo(folder / "pipe")
        answer = world.admin("GET", f"/jobs/{job}/artifacts/dense/{path}")
        assert answer.status_code in (404, 422), answer.text
        assert "root:" not in answer.text
        assert answer.text != "secret"

    @pytest.mark.parametrize("job", ["..", "%2e%2e", "a%2f..%2fb", "a b", "x" * 300, "a%0d%0aSet-Cookie:x"])
    def test_job_ids(self, job: str, world: World) -> None:
        for rest in ("", "/logs", "/artifacts", "/report"):
            assert world.admin("GET", f"/jobs/{job}{rest}").status_code in (404, 405, 422)

    @pytest.mark.parametrize(
        "path", ["/etc/passwd", "data.csv", "{data}/../secret.csv", "{data}/link.csv", "/proc/self/environ", "~/x.csv"]
    )
    def test_data_outside_the_roots(self, path: str, world: World) -> None:
        root = world.settings.data_roots[0]
        (root.parent / "secret.csv").write_text("a,b\n1,2\n")
        (root / "link.csv").symlink_to(root.parent / "secret.csv")
        source = {"kind": "csv", "path": path.format(data=root)}
        answer = world.admin("POST", "/jobs", json=spec(data={"source": source, "target": "b"}))
        assert answer.status_code == 422
        assert [each["path"] for each in answer.json()["problems"]] == ["data.source.path"]
        assert str(root) in answer.json()["problems"][0]["allowed"]

    def test_every_path_of_the_schema_is_known(self) -> None:
        from jobs.spec import JobSpec
        from jobs.spec.paths import FILE_KEYS

        names = {key for *_, key in FILE_KEYS} | {"working_dir"}
        schema = JobSpec.model_json_schema(by_alias=True)
        found = {key for each in schema["$defs"].values() for key in each.get("properties", {})}
        assert {key for key in found if key in ("file", "folder", "dir") or "path" in key or "_dir" in key} <= names


class TestBodies:
    @pytest.mark.parametrize(
        ("body", "kind", "status"),
        [
            (b"{" * 100_000, "application/json", 422),
            (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "application/json", 422),
            (b"[" * 20_000, "application/yaml", 422),
            (BOMB.encode(), "application/yaml", 422),
            (b"a: &a [*a]", "application/yaml", 422),
            (b"a: !!python/object/apply:os.system ['true']", "application/yaml", 422),
            (b"a: !!binary x", "application/yaml", 422),
            (b"- 1", "application/yaml", 422),
            (b"\xff\xfe", "application/json", 422),
            (b'{"name": "\\ud800"}', "application/json", 422),
            (b'{"name": "a\\u0000"}', "application/json", 422),
            (b'{"name": "a", "name": "b"}', "application/json", 422),
            (b'{"priority": NaN}', "application/json", 422),
            (b'{"priority": 1e999}', "application/json", 422),
            (b'{"priority": ' + b"9" * 5000 + b"}", "application/json", 422),
            (b"", "application/json", 422),
            (b"null", "application/json", 422),
            (b"x" * 200_000, "application/json", 413),
            (b"{}", "text/html", 415),
            (b"{}", "application/json; charset=utf-7", 415),
        ],
    )
    def test_of_a_submission(self, body: bytes, kind: str, status: int, world: World) -> None:
        answer = world.admin("POST", "/jobs", content=body, headers={"Content-Type": kind})
        assert answer.status_code == status, answer.text
        assert answer.json()["problems"]
        assert world.admin("GET", "/jobs").json()["jobs"] == []

    def test_a_body_without_a_declared_length(self, world: World) -> None:
        def endless() -> Any:
            for _ in range(100):
                yield b" " * 10_000

        answer = world.admin("POST", "/jobs", content=endless(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413

    @pytest.mark.parametrize("key", ["", "a b", "x" * 201, "ä".encode().decode("latin-1")])
    def test_keys(self, key: str, world: World) -> None:
        answer = world.admin("POST", "/jobs", json=DIGITS, headers={"Idempotency-Key": key.encode("latin-1")})  # type: ignore[dict-item]
        assert answer.status_code == 422

    def test_headers_cannot_be_injected(self, world: World) -> None:
        job = world.submit()
        folder = world.run_dir(job) / "artifacts" / "dense"
        folder.mkdir(parents=True)
        (folder / 'a";\r\nX-Evil: 1').write_text("x")
        answer = world.admin("GET", f"/jobs/{job}/artifacts/dense/a%22;%0d%0aX-Evil: 1")
        assert "x-evil" not in answer.headers

    def test_answers_carry_safe_headers(self, world: World) -> None:
        for answer in (world.admin("GET", "/jobs"), world.http.get("/nope"), world.http.get("/healthz")):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "server" not in answer.headers


class TestCode:
    SPEC = spec(model={"name": "own:build"})

    def send(self, world: World, archive: bytes, digest: str | None = None) -> Any:
        return world.admin("PUT", f"/code/{digest or hashlib.sha256(archive).hexdigest()}", content=archive)

    @pytest.mark.parametrize(
        "member",
        [
            {"name": "../out.py"},
            {"name": "/tmp/out.py"},
            {"name": "a/../../out.py"},
            {"name": "link.py", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
            {"name": "link.py", "type": tarfile.LNKTYPE, "linkname": "own.py"},
            {"name": "pipe", "type": tarfile.FIFOTYPE},
            {"name": "device", "type": tarfile.CHRTYPE},
            {"name": "own.py"},
            {"name": "own.py/below.py"},
            {"name": "a\nb.py"},
            {"name": "a\\b.py"},
            {"name": "x" * 250 + ".py"},
            {"name": "/".join("a" * 40) + ".py"},
            {"name": "large.py", "size": 2 << 20},
        ],
        ids=lambda member: member["name"][:20],
    )
    def test_archives_that_would_do_harm(self, member: dict[str, Any], world: World, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("own.py"))
            entry = tarfile.TarInfo()
            for name, value in member.items():
                setattr(entry, name, value)
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
        answer = self.send(world, buffer.getvalue())
        assert answer.status_code == 422, answer.text
        assert [each["path"] for each in answer.json()["problems"]] == ["code"]
        assert list(tmp_path.rglob("*.py")) == []

    def test_too_many_files_and_too_large_a_body(self, world: World) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for number in range(60):
                archive.addfile(tarfile.TarInfo(f"m{number}.py"))
        assert self.send(world, buffer.getvalue()).status_code == 422
        assert self.send(world, os.urandom(300_000)).status_code == 413

    @pytest.mark.parametrize("body", [b"", b"no archive", b"\x1f\x8b\x08\x00" + bytes(20)])
    def test_what_is_no_archive(self, body: bytes, world: World) -> None:
        assert self.send(world, body).status_code == 422

    def test_another_digest(self, world: World) -> None:
        assert self.send(world, b"x", "0" * 64).status_code == 422

    def test_modules_travel(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "own.py").write_text("def build(): ...\n")
        archive = pack_modules(tmp_path / "mine")
        digest = hashlib.sha256(archive).hexdigest()
        missing = world.admin("POST", f"/jobs?code={digest}", json=self.SPEC)
        assert (missing.status_code, missing.json()["problems"][0]["path"]) == (422, "code")
        assert world.admin("POST", "/jobs", json=self.SPEC).json()["problems"][0]["path"] == "code"
        assert self.send(world, archive).json()["files"] == 1
        job = world.admin("POST", f"/jobs?code={digest}", json=self.SPEC).json()
        assert (world.settings.job_folder(job["id"]) / "code" / "own.py").read_text() == "def build(): ...\n"
        other = world.admin("POST", f"/jobs?code={digest}", json=spec(model={"name": "other:build"}))
        assert other.json()["problems"][0]["path"] == "model.name"


class TestRates:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(requests_per_s=1, burst=5, streams=1)

    def test_a_token_that_asks_too_often(self, world: World) -> None:
        other = world.token("viewer")
        answers = [world.admin("GET", "/me") for _ in range(7)]
        assert [each.status_code for each in answers].count(429) == 2
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert other("GET", "/me").status_code == 200


def test_the_limits_of_the_tests_are_limits() -> None:
    assert LIMITS.code_bytes < Limits().code_bytes
