"""Processes of the scripts that begin at once: forked from one that has imported everything.

Importing torch, scanpy and the rest takes a script five seconds, longer than most tests need. The
tests that need a process of its own (signals, kills, ranks, exit codes) begin it here; what was
imported has computed nothing yet, so it is as fresh as any other.
"""

import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    "run_train", "run_eval", "run_extract", "run_profile", "histokit.audit",
    "histokit.evaluate.curation", "torch._dynamo", "sklearn.decomposition", "anndata",
    "matplotlib.pyplot",
)  # fmt: skip


class Child:
    """A running script, with the few methods of ``subprocess.Popen`` that tests call."""

    def __init__(self, folder: Path, pid: int):
        self.folder, self.pid = folder, pid
        self.returncode = None

    def poll(self):
        status = self.folder / "status"
        if self.returncode is None and status.exists():
            self.returncode = int(status.read_text())
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=120):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.folder), timeout)
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout=120):
        self.wait(timeout)
        return tuple((self.folder / name).read_text() for name in ("stdout", "stderr"))


class Nursery:
    """Begins scripts; ``close`` when done."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.count = 0

    def start(self, script, *arguments, **environment) -> Child:
        """Begin a script: its file, or the name of a module of the package."""
        self.count += 1
        folder = Path(self.folder.name) / str(self.count)
        folder.mkdir()
        order = {
            "script": str(script), "arguments": list(map(str, arguments)), "folder": str(folder),
            "cwd": os.getcwd(), "environment": {**os.environ, **environment},
        }  # fmt: skip
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return Child(folder, int(self.process.stdout.readline()))

    def run(self, script, *arguments, check=False, timeout=120, **options):
        """The finished script, as ``subprocess.run`` gives it."""
        child = self.start(script, *arguments, **options)
        done = subprocess.CompletedProcess(
            [script, *arguments], child.wait(timeout), *child.communicate()
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def ranks(self, number, script, *arguments, port) -> list[Child]:
        """Begin a script once for each rank, with what torchrun would tell it."""
        shared = {"WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start(
                script, *arguments, RANK=str(rank), LOCAL_RANK=str(rank),
                **{key: str(value) for key, value in shared.items()},
            )
            for rank in range(number)
        ]  # fmt: skip

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def become(order):
    """In the forked process: be the script, and leave."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(order["folder"], name), os.O_CREAT | os.O_WRONLY)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    sys.argv = [order["script"], *order["arguments"]]
    code = 0
    try:
        if order["script"].endswith(".py"):
            runpy.run_path(order["script"], run_name="__main__")
        else:
            sys.modules.pop(order["script"], None)  # as in a process that runs it first
            runpy.run_module(order["script"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve():
    """Fork a process for each line of stdin, answer its number, write how it ended."""
    sys.path.insert(0, str(ROOT))
    for name in PRELOADED:
        __import__(name)
    running = {}
    while True:
        if select.select([sys.stdin], [], [], 0.01)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                become(order)
            running[pid] = Path(order["folder"])
            print(pid, flush=True)
        for pid, folder in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                (folder / "part").write_text(str(os.waitstatus_to_exitcode(status)))
                (folder / "part").rename(folder / "status")
                del running[pid]


if __name__ == "__main__":
    serve()
