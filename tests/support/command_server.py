"""Command lines in processes of their own, without the seconds that starting Python with torch takes each time."""

import atexit
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

from dstee import cli

TINY = [
    "--hidden", "16", "--epochs", "2", "--batch-size", "128", "--every", "4", "--checkpoint-every", "3", "--sparsity", "0.9",
]  # fmt: skip

# Starting Python with torch takes seconds. This process does it once and then forks one real process per command line.
SERVER = """
import json, os, sys
from dstee import cli
from dstee.experiments import commands, config, data, trial
dataset = data.load("digits", None)
trial.Trial(config.Config.resolve({}), "dst-ee", 0, dataset).step()  # torch's late imports
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.environ.update(job["env"])
            for fd, path in enumerate(job["streams"], 1):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOCTTY, 0o600), fd)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
            status = cli.main(job["argv"])
            sys.stdout.flush()
        finally:
            os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Server:
    """Runs command lines one at a time, each in a process of its own."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes)
        assert self.read() == "ready"

    def read(self):
        return self.process.stdout.readline().strip()

    def start(self, argv, streams, env=None):
        """pid of ``dstee argv``, whose standard output and error go to the files (or terminals) ``streams``."""
        job = {"argv": [str(a) for a in argv], "streams": [str(s) for s in streams], "env": env or {}}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.read())

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def wait(self):
        """Exit status; minus the signal that killed it."""
        return int(self.read())


@functools.cache
def shared_server():
    """The one server of this test run."""
    server = Server()
    atexit.register(server.close)
    return server


def digests(folder):
    """Digest of every training of the run in ``folder``."""
    results = json.loads((folder / "results.json").read_text())["results"]
    return {f"{r['method']}-seed{r['seed']}": r["digest"] for r in results}
