"""Whether a model file runs at all, found out in another process: a fault in the runtime ends that one alone.

A fused kernel that meets types it was not written for ends the process by a signal, and no `except` sees that. The
other process knows ONNX Runtime and NumPy alone, as whoever serves the file does. It stays for the next file, and ends
with this process.
"""

import json
import select
import subprocess
import sys
import tempfile
import threading
from functools import lru_cache
from pathlib import Path

import numpy as np

from jobs.errors import ArtifactError

_TIMEOUT_S = 300.0

_CHILD = """
import json, sys
import numpy as np
import onnxruntime
for line in sys.stdin:
    question = json.loads(line)
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(question["file"], options, providers=["CPUExecutionProvider"])
        samples = np.load(question["samples"], allow_pickle=False)
        (output, *_) = session.run(None, {session.get_inputs()[0].name: samples})
        np.save(question["outputs"], output, allow_pickle=False)
        answer = {}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"""


def check_runs(path: Path, samples: np.ndarray) -> np.ndarray:
    """Opens and runs a model file in a process of its own, and gives the outputs.

    Args:
        path: the file.
        samples: a few encoded samples (n, *input_shape), of the type that the file takes.

    Raises:
        ArtifactError: the file does not run, or the process died of it, or did not answer within 5 minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        stored, outputs = Path(folder) / "samples.npy", Path(folder) / "outputs.npy"
        np.save(stored, samples, allow_pickle=False)
        question = {"file": str(path.absolute()), "samples": str(stored), "outputs": str(outputs)}
        answer = _prober().ask(json.dumps(question))
        if "error" in answer:
            raise ArtifactError(f"{path} does not run here: {answer['error']}")
        found: np.ndarray = np.load(outputs, allow_pickle=False)
        return found


class _Prober:
    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, question: str) -> dict[str, object]:
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(question + "\n")
                process.stdin.flush()
                ready, _, _ = select.select([process.stdout], [], [], _TIMEOUT_S)
                line = process.stdout.readline() if ready else None
            except BrokenPipeError:
                line = ""
            if line:
                answer: dict[str, object] = json.loads(line)
                return answer
            self._process = None
            process.kill()
            code = process.wait()
            process.stdin.close()
            process.stdout.close()
            died = f"the process died of it (signal {-code})"
            return {"error": died if line == "" else f"no answer in {_TIMEOUT_S:.0f} s"}

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self._process


@lru_cache(maxsize=1)
def _prober() -> _Prober:
    return _Prober()
