"""Jobs sent to a Ray cluster through its Jobs API, without the service."""

import secrets
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import yaml

from cluster.submit import RayJobs
from jobs.code import copy_modules
from jobs.spec import JobSpec
from jobs.spec.paths import with_absolute_paths

SPEC_NAME = "thresher-job.yaml"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RemoteJobs:
    """The jobs of one cluster.

    Args:
        address: of Ray's dashboard, http://head:8265.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.jobs = RayJobs(address)

    def submit(self, spec: JobSpec, *, runs: str, python: str | None = None) -> str:
        """Sends the spec, and the user's modules if it uses any; returns the job's id.

        The data and the storage are reached at their absolute paths from the cluster's nodes.

        Args:
            python: the cluster's interpreter; default: this one where the cluster is on this machine, else `python`.
        """
        job_id = f"{spec.name}-{secrets.token_hex(4)}"
        local = urlsplit(self.address).hostname in _LOOPBACK
        interpreter = python or (sys.executable if local else "python")
        command = [interpreter, "-m", "orchestrator.cli", "run", SPEC_NAME, "--address", "auto"]
        command += ["--runs", str(Path(runs).absolute()) if "://" not in runs else runs]
        with tempfile.TemporaryDirectory(prefix="thresher-submit-") as name:
            folder = Path(name)
            if spec.uses_own_code:
                copy_modules(Path(spec.code.working_dir), folder)
            document = with_absolute_paths(spec.document())
            (folder / SPEC_NAME).write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
            self.jobs.submit(
                shlex.join(command),
                submission_id=job_id,
                working_dir=folder,
                env={},
                metadata={"thresher_name": spec.name, "thresher_project": spec.project},
            )
        return job_id

    def follow(self, job_id: str, out: TextIO) -> int:
        """Streams the log until the job ends; returns the exit code of `thresher run` there."""
        for line in self.jobs.logs(job_id):
            out.write(line + "\n")
            out.flush()
        return exit_code(self.jobs.status(job_id))

    def status(self, job_id: str) -> dict[str, Any]:
        return _document(job_id, self.jobs.status(job_id))

    def log(self, job_id: str) -> list[str]:
        """The lines written so far."""
        return self.jobs.log(job_id)

    def cancel(self, job_id: str) -> dict[str, Any]:
        return _document(job_id, self.jobs.stop(job_id))


def _document(job_id: str, state: Any) -> dict[str, Any]:
    return {"job_id": job_id, "state": state.status, "message": state.message, "exit_code": state.exit_code}


def exit_code(state: Any) -> int:
    """What the job's driver ended with; 130 for one that was stopped."""
    if state.status == "STOPPED":
        return 130
    if state.status == "SUCCEEDED":
        return 0
    return state.exit_code or 1
