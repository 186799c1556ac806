"""Netron opens what is exported: with its own reader under Node, from its own server, and drawn in a browser.

The reader needs Node, the drawing a Chromium; where there is none of them, what Netron's server hands out is left.
"""

import asyncio
import datetime
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import netron
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from jobs.compress import quantize_onnx
from tests.jobs.compress.conftest import MODELS, Small

READER = Path(__file__).with_name("open_in_netron.mjs")
QUANTIZED = (
    ("lenet", "int8_static"),
    ("lstm", "int8_dynamic"),
    ("transformer", "int4_weight"),
    ("recommender", "int8_static"),
    ("mlp", "bf16"),
)
UNDOCUMENTED = {"DynamicQuantizeLSTM"}
"""Operators of ONNX Runtime's own that Netron draws, but knows no names for the inputs of."""
TIMEOUT_S = 120
DRAWN_WITHIN_S = 60
Families = Callable[[str], Small]


@pytest.fixture(scope="module")
def files(families: Families, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family in float, and every scheme once."""
    folder = tmp_path_factory.mktemp("netron")
    found = {}
    for family in MODELS:
        found[family] = folder / f"{family}.onnx"
        shutil.copyfile(families(family).file, found[family])
    for family, scheme in QUANTIZED:
        found[f"{family}-{scheme}"] = folder / f"{family}-{scheme}.onnx"
        quantize_onnx(families(family).file, found[f"{family}-{scheme}"], scheme, families(family).x)
    return found


def node() -> str:
    """The Node on this machine, if it is one that takes Netron's modules as they are."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("there is no node on this machine")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    major, minor = map(int, version.stdout.strip().lstrip("v").split(".")[:2])
    if (major, minor) < (20, 19):
        pytest.skip(f"node {version.stdout.strip()} does not recognize modules by their content; 20.19 does")
    return program


def test_its_reader_reads_every_operator_and_every_tensor(files: dict[str, Path]) -> None:
    command = [node(), str(READER), str(Path(netron.__file__).parent), *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    read = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(each["file"]) for each in read] == list(files.values())
    for each in read:
        graph = onnx.load(each["file"]).graph
        assert each["format"].startswith("ONNX v")
        assert each["nodes"] == [operator.op_type for operator in graph.node]
        assert set(each["undocumented"]) <= UNDOCUMENTED
        assert [name for name, _ in each["inputs"] + each["outputs"]] == ["input", "output"]
        assert each["inputs"][0][1].split("[")[1].startswith("batch,")
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        assert each["sums"].keys() == tensors.keys()
        for name, total in each["sums"].items():
            assert total == pytest.approx(float(values(tensors[name]).sum(dtype=np.float64)), rel=1e-6, abs=1e-6), name


def test_its_reader_says_so_of_a_file_that_is_cut_off(files: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(files["lenet"].read_bytes()[:-100])
    command = [node(), str(READER), str(Path(netron.__file__).parent), str(cut)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode != 0
    assert "Unexpected end of file" in done.stderr


def values(tensor: Any) -> np.ndarray:
    if tensor.data_type == TensorProto.BFLOAT16:
        return numpy_helper.to_array(tensor).astype(np.float32)
    return numpy_helper.to_array(tensor)


@contextmanager
def served(file: Path) -> Iterator[str]:
    """The address of Netron's own server, with the file."""
    host, port = netron.serve(str(file), None, ("127.0.0.1", 0), False)
    try:
        yield f"http://{host}:{port}"
    finally:
        netron.stop((host, port))


def test_its_server_hands_the_file_out(files: dict[str, Path]) -> None:
    file = files["lenet-int8_static"]
    with served(file) as address:
        page = urllib.request.urlopen(address, timeout=TIMEOUT_S).read().decode()
        (path,) = re.findall(r'<meta name="file" content="([^"]+)">', page)
        assert urllib.request.urlopen(address + path, timeout=TIMEOUT_S).read() == file.read_bytes()


@contextmanager
def consenting(address: str) -> Iterator[str]:
    """A server before Netron's: it has agreed to cookies, and says that the viewer is of today.

    Without the former the viewer waits for a click; half a year after its release it asks for a newer one instead.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with urllib.request.urlopen(address + self.path, timeout=TIMEOUT_S) as answer:
                content, kind = answer.read(), answer.headers["Content-Type"]
            if kind == "text/html":
                today = f'<meta name="date" content="{datetime.date.today()} 00:00:00">'.encode()
                content = re.sub(rb'<meta name="date" content="[^"]*">', today, content)
            with suppress(ConnectionError):  # a browser that is closed
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Set-Cookie", "consent=1; Path=/")
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(TIMEOUT_S)


@pytest.mark.parametrize("name", ["lenet-int8_static", "transformer-int4_weight"])
def test_a_browser_draws_it(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    with served(files[name]) as behind, consenting(behind) as address, browsing(browser, address, tmp_path) as port:
        page, message = asyncio.run(drawn(port))
    assert message == ""
    shown = re.findall(r'class="node graph-node"', page)
    assert len(shown) == len(onnx.load(files[name]).graph.node)


@contextmanager
def browsing(browser: str, address: str, folder: Path) -> Iterator[int]:
    """The port at which a browser that shows the address can be asked about it."""
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        f"--user-data-dir={folder}",
        "--remote-debugging-port=0",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves the machine
        "--window-size=1600,1600",
    ]
    process = subprocess.Popen([browser, *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told, deadline = folder / "DevToolsActivePort", time.monotonic() + DRAWN_WITHIN_S
        while not told.exists() or not told.read_text():
            assert process.poll() is None, f"{browser} ended with code {process.returncode}"
            assert time.monotonic() < deadline, f"{browser} does not start"
            time.sleep(0.05)
        yield int(told.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


async def drawn(port: int) -> tuple[str, str]:
    """The page once the graph is on it, and the viewer's message, which is an error's where there is one."""
    ask = "[document.body.className, document.getElementById('message-text')?.innerText, document.body.innerHTML]"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            (page, *_) = [each for each in await answer.json() if each["type"] == "page"]
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            for number in range(DRAWN_WITHIN_S * 5):
                expression = f"JSON.stringify({ask})"
                question = {"id": number, "method": "Runtime.evaluate", "params": {"expression": expression}}
                await socket.send_json(question)
                answered = (await socket.receive_json())["result"]["result"]
                if "value" in answered:  # else the page has not begun yet
                    state, message, content = json.loads(answered["value"])
                    if "default" in state.split():
                        return content, ""
                    if message and {"notification", "alert"} & set(state.split()):
                        return content, message
                await asyncio.sleep(0.2)
    raise AssertionError(f"nothing is drawn after {DRAWN_WITHIN_S} s: {answered}")
