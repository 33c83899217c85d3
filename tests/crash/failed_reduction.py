#!/usr/bin/env python3
"""NCCL breaks on one of two workers, at each of some operations in turn: the run must end with exit code
4, and no checkpoint may hold what a failed reduction left behind: each is what an undisturbed run has.

usage: failed_reduction.py EMULATED_PROGRAM MPIEXEC
"""
import pathlib
import subprocess
import sys
import tempfile

from job import ENVIRONMENT

STEPS = 4
# With --reduce all-reduce a step's one reduction is all that NCCL does in it: nothing after it would
# notice that it failed.
OPERATIONS = range(STEPS)


def train(program, mpiexec, data, run, **environment):
    command = [mpiexec, "-np", 2, program, "train", "--device", "cuda", "--data", data, "--run", run,
               "--steps", STEPS, "--batch-size", 2, "--layers", 1, "--hidden-size", 16, "--heads", 2,
               "--context-length", 16, "--threads", 1, "--precision", "fp32",
               "--checkpoint-every", 1, "--keep", 0, "--evaluate-every", 0,
               "--collective-timeout", 2, "--reduce", "all-reduce"]
    done = subprocess.run([str(word) for word in command], env=dict(ENVIRONMENT, LOCKSTEP_EMULATION_DEVICES="2", **environment),
                          text=True, capture_output=True, timeout=120)
    return done.returncode, done.stderr


def main():
    program, mpiexec = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
        data, undisturbed = folder / "data", folder / "undisturbed"
        subprocess.run([program, "prepare", "--input", folder / "text.txt", "--output", data,
                        "--tokenizer", "bytes"], check=True, stderr=subprocess.DEVNULL)
        code, errors = train(program, mpiexec, data, undisturbed)
        assert code == 0, errors

        compared = 0
        for operation in OPERATIONS:
            run = folder / f"broken-{operation}"
            code, errors = train(program, mpiexec, data, run,
                                 LOCKSTEP_EMULATION_NCCL_FAIL=f"1:{operation}")
            steps = sorted(path.name for path in run.glob("checkpoints/step-*"))
            print(f"broken at operation {operation}: exit code {code}, checkpoints of {len(steps)} steps")
            assert code == 4, errors
            for step in steps:
                good = undisturbed / "checkpoints" / step
                same = subprocess.run([program, "checkpoint", "diff", run / "checkpoints" / step, good],
                                      text=True, capture_output=True)
                assert same.returncode == 0, f"{step} holds what a broken run computed:\n{same.stdout}"
                compared += 1
        assert compared > 0, "no broken run got as far as a checkpoint: this shows nothing"
    print("nothing that failed was believed")


if __name__ == "__main__":
    main()
