"""A real tritonserver (of nvidia-pytriton) and NVIDIA's client, in the environment of `make triton-env`."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
CLIENT = Path(__file__).with_name("client_process.py")
START_LIMIT_S = 120
STOP_LIMIT_S = 60
# Nothing of the session that tests leads into the environment that is tested.
LEADS_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
ASK = """
import sys, sysconfig, pytriton
print(f"{sys.version_info.major}.{sys.version_info.minor}")
print(pytriton.__path__[0])
print(sysconfig.get_config_var("LIBDIR"))
print(sysconfig.get_config_var("LDLIBRARY"))
"""


@dataclass(frozen=True)
class Server:
    """A tritonserver that runs."""

    process: subprocess.Popen[bytes]
    url: str
    http: str
    log: Path

    def stop(self) -> int:
        """As Ctrl-C; the exit status. It has ended after, if need be by force."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=STOP_LIMIT_S)
        finally:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class TritonEnvironment:
    """Where tritonserver and its client are installed."""

    folder: Path
    version: str
    pytriton: Path
    library_folder: str

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def backends(self, folder: Path) -> Path:
        """The Python backend with the stub for this Python, which pytriton keeps apart."""
        place = shutil.copytree(self.pytriton / "tritonserver" / "backends", folder / "backends")
        stub = self.pytriton / "tritonserver" / "python_backend_stubs" / self.version / "triton_python_backend_stub"
        shutil.copy(stub, place / "python")
        return place

    @contextmanager
    def serve(self, repository: Path, folder: Path, *options: str) -> Iterator[Server]:
        """A server over a repository; it has stopped after, whatever happens."""
        ports = _free_ports(2)
        libraries = f"{self.library_folder}:{self.pytriton.parent / 'nvidia_pytriton.libs'}"
        command = [
            self.pytriton / "tritonserver" / "bin" / "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={self.backends(folder)}",
            f"--http-port={ports[0]}",
            f"--grpc-port={ports[1]}",
            "--allow-metrics=false",
            *options,
        ]
        log = folder / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=_environment() | {"LD_LIBRARY_PATH": libraries}
            )
        server = Server(process, f"localhost:{ports[1]}", f"http://localhost:{ports[0]}", log)
        try:
            _wait_until_started(server)
            yield server
        finally:
            if process.poll() is None:
                server.stop()  # killed, it would leave its shared memory


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in LEADS_OUT}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_started(server: Server) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while b"Started GRPCInferenceService" not in server.log.read_bytes():
        if server.process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"tritonserver did not start:\n{server.log.read_text()[-4000:]}")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def triton_environment() -> TritonEnvironment:
    folder = Path(os.environ.get("TELECINE_TRITON_ENV", ROOT / ".triton-env"))
    python = folder / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no tritonserver in {folder}: make triton-env installs it")
    asked = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=True, env=_environment())
    version, pytriton, library_folder, library = asked.stdout.split()
    if not library.endswith(".so"):
        pytest.skip(f"{python} has no shared libpython, which Triton's Python backend loads")
    return TritonEnvironment(folder, version, Path(pytriton), library_folder)


@pytest.fixture(scope="session")
def call(triton_environment: TritonEnvironment) -> Iterator[Callable[..., Any]]:
    """`call("infer", ...)`: a function of client_process.py, run there."""
    with subprocess.Popen(
        [triton_environment.python, CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def call(name: str, *arguments: Any) -> Any:
            pickle.dump((name, arguments), stdin, protocol=4)
            stdin.flush()
            return pickle.load(stdout)

        yield call
        stdin.close()
