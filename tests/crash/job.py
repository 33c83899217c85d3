"""A small training job under mpirun, for tests that disturb it."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                   OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_hwloc_base_binding_policy="none")
# From a signal to the end of a job, on a machine that is busy.
GRACE_S = 60


def worker_pid(path, rank):
    """The process whose command names this path and which has this rank, by its environment."""
    for process in pathlib.Path("/proc").iterdir():
        try:
            if str(path).encode() not in (process / "cmdline").read_bytes():
                continue
            if f"OMPI_COMM_WORLD_RANK={rank}".encode() in (process / "environ").read_bytes().split(
                    b"\0"):
                return int(process.name)
        except (OSError, ValueError):
            continue
    sys.exit(f"worker {rank} is not there")


def make_data(program, folder):
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    data = folder / "data"
    subprocess.run([program, "prepare", "--input", folder / "text.txt", "--output", data,
                    "--tokenizer", "bytes"], check=True, stderr=subprocess.DEVNULL)
    return data


def command(program, data, run, steps, *more):
    """Of steps that take some milliseconds. Any number of workers that divides 4 gives the same bits."""
    words = [program, "train", "--data", data, "--run", run, "--steps", steps, "--batch-size", 4,
             "--virtual-workers", 4, "--layers", 1, "--hidden-size", 32, "--heads", 2,
             "--context-length", 32, "--threads", 1, "--precision", "fp32", "--log-every", 1000000, *more]
    return [str(word) for word in words]


def train_undisturbed(words):
    """By one worker: on a machine that is busy several wait for each other most of the time."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Job:
    def __init__(self, mpiexec, workers, words, run):
        self.run = run
        self.process = subprocess.Popen([mpiexec, "-np", str(workers), *words], env=ENVIRONMENT, text=True, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE)

    def workers(self):
        """Process ids of the workers by rank that take signals as a request: those that have blocked
        them, which the program does first of all."""
        found = {}
        for process in pathlib.Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                if str(self.run).encode() not in (process / "cmdline").read_bytes().split(b"\0"):
                    continue
                rank = dict(word.split(b"=", 1) for word in (process / "environ").read_bytes().split(b"\0")
                            if b"=" in word).get(b"OMPI_COMM_WORLD_RANK")
                blocked = next(line for line in (process / "status").read_text().splitlines()
                               if line.startswith("SigBlk"))
                if rank is not None and int(blocked.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1:
                    found[int(rank)] = int(process.name)
            except (OSError, ValueError, StopIteration):
                continue
        return found

    def wait_for_workers(self, count):
        while True:
            found = self.workers()
            if len(found) == count:
                return [found[rank] for rank in range(count)]
            if self.process.poll() is not None:
                sys.exit(f"it ended by itself:\n{self.process.stderr.read()}")
            time.sleep(0.005)

    def ended(self):
        return self.process.poll() is not None

    def wait_for_step(self, step):
        while last_step(self.run) < step:
            if self.ended():
                sys.exit(f"it ended by itself:\n{self.process.stderr.read()}")
            time.sleep(0.005)

    def wait(self):
        try:
            _, errors = self.process.communicate(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            sys.exit(f"the job hangs, {GRACE_S} s later")
        return self.process.returncode, errors


def last_step(run):
    """Of the steps that were made: metrics.jsonl has a line of each."""
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def noted(run):
    """status.json as it is: only its process changes it."""
    return json.loads((run / "status.json").read_text())


def saved_step(run):
    steps = sorted(path.name for path in run.glob("checkpoints/step-*"))
    return int(steps[-1].split("-")[1]) if steps else 0


def status(program, run):
    told = subprocess.run([program, "status", run, "--json"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


def expect_same(program, a, b):
    same = subprocess.run([program, "checkpoint", "diff", a, b], capture_output=True, text=True)
    assert same.returncode == 0, f"other bits than undisturbed:\n{same.stdout}{same.stderr}"
