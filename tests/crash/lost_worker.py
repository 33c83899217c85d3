#!/usr/bin/env python3
"""Four workers, one of which is stopped (SIGSTOP) or killed while they train: the job must end by itself,
with a message that says what happened, and the last checkpoint must be good.

usage: lost_worker.py PROGRAM MPIEXEC [DEVICE]     default: cpu
"""
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from job import ENVIRONMENT, worker_pid

DEADLINE_S = 3
# From the deadline: hearing of each other, printing, ending the others; on a machine that is busy.
GRACE_S = 30


def lose_worker(program, mpiexec, device, folder, data, how, rank):
    """Starts a run, does this to that worker after some steps, returns how the job ended."""
    run = folder / f"run-{how.name}"
    command = [mpiexec, "-np", 4, program, "train", "--data", data, "--run", run, "--steps", 1000000,
               "--batch-size", 4, "--layers", 1, "--hidden-size", 16, "--heads", 2,
               "--context-length", 16, "--threads", 1, "--checkpoint-every", 5, "--keep", 2,
               "--evaluate-every", 0, "--collective-timeout", DEADLINE_S,
               "--device", device]
    job = subprocess.Popen([str(word) for word in command], env=ENVIRONMENT, text=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoints = run / "checkpoints"
    while not (checkpoints.is_dir() and any(checkpoints.glob("step-*"))):
        if job.poll() is not None:
            sys.exit(f"it ended by itself:\n{job.stderr.read()}")
        time.sleep(0.01)
    os.kill(worker_pid(run, rank), how)
    start = time.monotonic()
    try:
        _, errors = job.communicate(timeout=DEADLINE_S + GRACE_S)
    except subprocess.TimeoutExpired:
        job.kill()
        sys.exit(f"{how.name}: the job hangs {DEADLINE_S + GRACE_S} s later")
    finally:
        subprocess.run(["pkill", "-KILL", "-f", str(run)], check=False)
    print(f"{how.name} of worker {rank}: exit code {job.returncode} after "
          f"{time.monotonic() - start:.1f} s\n{errors}")
    verified = subprocess.run([program, "checkpoint", "verify", run])
    assert verified.returncode == 0, "a checkpoint is damaged"
    return job.returncode, errors


def main():
    program, mpiexec = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    device = sys.argv[3] if len(sys.argv) > 3 else "cpu"
    ENVIRONMENT["LOCKSTEP_EMULATION_DEVICES"] = "4"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
        data = folder / "data"
        subprocess.run([program, "prepare", "--input", folder / "text.txt", "--output", data,
                        "--tokenizer", "bytes"], check=True, stderr=subprocess.DEVNULL)

        # All that wait name the operation and the worker that is missing.
        code, errors = lose_worker(program, mpiexec, device, folder, data, signal.SIGSTOP, 2)
        assert code == 4, code
        told = re.findall(r"worker (\d) on \S+: (all-\w+|barrier|broadcast|gather|an operation of step)"
                          r".*: after [\d.]+ s worker 2 had not come to it", errors)
        assert {rank for rank, _ in told} == {"0", "1", "3"}, told

        code, errors = lose_worker(program, mpiexec, device, folder, data, signal.SIGKILL, 1)
        assert code not in (0, 75), code
        assert "rank 1" in errors, "mpirun says which worker died"
    print("lost workers are told")


if __name__ == "__main__":
    main()
