"""The demo on two machines, as far as torchrun knows: two agents, a rank each."""

import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import sdtree as sd

ENOUGH = 120


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def started(port: int, *words: object) -> subprocess.Popen:
    """Return a launcher of one rank, which finds the other at the port."""
    launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outputs(processes: list[subprocess.Popen]) -> list[str]:
    """Return what each has printed; none outlives this."""
    with ThreadPoolExecutor() as pool:
        found = [pool.submit(process.communicate) for process in processes]
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENOUGH)
        for process in processes:
            end(process)
        return [each.result()[0] for each in found]


def end(process: subprocess.Popen):
    """End a launcher, which ends its rank if it is given the time."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()


def test_the_demo_runs_on_two_agents(tmp_path):
    """One rank tells the story, the other is silent, and no more are started."""
    port = free_port()
    words = ("-m", "sdtree", "demo", "--dir", tmp_path, "--ranks", 5)
    agents = [started(port, *words) for _ in range(2)]
    printed = outputs(agents)
    assert [agent.returncode for agent in agents] == [0, 0], "\n\n".join(printed)
    silent, told = sorted(printed, key=len)
    assert silent == ""
    assert "mesh (2,), loss" in told
    losses = re.findall(r"^step \d+: loss (.*), by way of the file (.*)$", told, re.M)
    assert len(losses) == 4
    assert all(loss == by_file for loss, by_file in losses)
    assert len(sd.load(tmp_path / "sharded.safetensors")["optimizer"]["state"]) == 25
