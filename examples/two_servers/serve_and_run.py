"""Start the two teachers' servers, run `compact run`, stop the servers.

    python examples/two_servers/serve_and_run.py --world build/two-servers examples/two_servers/run.yaml

Press Ctrl-C at any moment and start it again: it goes on where it was. Needs `pip install fastapi uvicorn`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

PORTS = {"terse": 8101, "verbose": 8102}


def serve(folder: Path, port: int, stack: ExitStack) -> subprocess.Popen[bytes]:
    """Start `transformers serve` on a model's folder; it ends with the stack."""
    log = stack.enter_context((folder / "server.log").open("wb"))
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    # A session of its own: Ctrl-C is for the run, which finishes what is in flight, and needs the servers for that.
    server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    stack.callback(server.wait)
    stack.callback(server.terminate)
    return server


def wait_until_healthy(server: subprocess.Popen[bytes], port: int) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            if server.poll() is not None:
                sys.exit(f"the server on port {port} ended; see server.log in its model's folder")
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--world", type=Path, default=Path("build/two-servers"))
    arguments = parser.parse_args()
    with ExitStack() as stack:
        servers = {port: serve(arguments.world / name, port, stack) for name, port in PORTS.items()}
        for port, server in servers.items():
            wait_until_healthy(server, port)
        run = [sys.executable, "-c", "from compact_distill.cli import app; app()", "run", str(arguments.config)]
        process = subprocess.Popen(run)
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # it got the same signal and stops by itself
                continue
    sys.exit(code)


if __name__ == "__main__":
    main()
