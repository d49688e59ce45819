"""A server in a process of its own, as users start it, for tests that talk to one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "llama3_json")
SMALL = ("--enforce-eager", "--no-use-tqdm-on-load")
"""What makes the demo model start soon."""
STARTED_WITHIN = 120.0
STOPPED_WITHIN = 60.0


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def live_server(
    *flags: str,
    command: Sequence[str] = ("-m", "quire.entrypoints.openai.api_server"),
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[str]:
    """The address of a server that answers, such as `http://127.0.0.1:8000`, within the block.

    Args:
        flags: of the server, without `--port`.
        command: Python's arguments before them.
        environment: variables on top of this process's own.
        cwd: where it starts, by default here.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *command, *flags, "--port", str(port)],
            stdout=log,
            stderr=log,
            env=os.environ | (environment or {}),
            cwd=cwd,
        )
        try:
            _wait_for(process, address)
            yield address
            process.send_signal(signal.SIGTERM)
            status = process.wait(STOPPED_WITHIN)
            assert status in (0, -signal.SIGTERM), f"the server ended with status {status}"
        except BaseException:
            log.seek(0)
            print(log.read(), file=sys.stderr)
            raise
        finally:
            process.kill()
            process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", address: str) -> None:
    end = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended with status {process.returncode}"
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{address}/health", timeout=5),
        ):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{address} did not answer within {STARTED_WITHIN} s")
