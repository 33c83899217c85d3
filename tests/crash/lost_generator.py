#!/usr/bin/env python3
"""Workers that share prompts (generate --output), of which one is killed in the midst of it: the job must
end by itself, and started again with any number of workers it must do only what is missing, and leave
the bytes that an undisturbed one leaves.

usage: lost_generator.py PROGRAM MPIEXEC
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from job import ENVIRONMENT, worker_pid

# From the kill to the end of the job: mpirun ends the others; on a machine that is busy.
GRACE_S = 30
PROMPTS = 40


def completions(journal):
    """Whole lines of a journal, without its first."""
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def start(program, mpiexec, folder, output, workers):
    command = [program, "generate", "--checkpoint", folder / "run", "--precision", "fp32",
               "--prompt-file", folder / "prompts.jsonl", "--forbid", "<|endoftext|>",
               "--threads", 1, "--batch-size", 3, "--output", output]
    if workers > 0:
        command = [mpiexec, "-np", workers] + command
    return subprocess.Popen([str(word) for word in command], env=ENVIRONMENT, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_one(program, mpiexec, folder, output, rank):
    """Kills that worker of three once some completions are there; returns how many there were."""
    journal = output.with_name(output.name + ".partial")
    job = start(program, mpiexec, folder, output, 3)
    while completions(journal) < 5:
        if job.poll() is not None:
            sys.exit(f"it ended by itself:\n{job.stderr.read()}")
        time.sleep(0.002)
    os.kill(worker_pid(output, rank), signal.SIGKILL)
    begin = time.monotonic()
    try:
        _, errors = job.communicate(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        job.kill()
        sys.exit(f"the job hangs {GRACE_S} s after worker {rank} was killed")
    finally:
        subprocess.run(["pkill", "-KILL", "-f", str(output)], check=False)
    done = completions(journal)
    print(f"worker {rank} killed: exit code {job.returncode} after {time.monotonic() - begin:.1f} s, "
          f"{done} completions")
    assert job.returncode not in (0, 75), errors
    assert f"rank {rank}" in errors, errors
    assert not output.exists() and 5 <= done < PROMPTS
    return done


def main():
    program, mpiexec = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
        subprocess.run([program, "prepare", "--input", folder / "text.txt", "--output",
                        folder / "data", "--tokenizer", "bytes"], check=True,
                       stderr=subprocess.DEVNULL)
        subprocess.run([program, "train", "--data", folder / "data", "--run", folder / "run",
                        "--steps", "1", "--batch-size", "1", "--layers", "2", "--hidden-size", "64",
                        "--heads", "2", "--context-length", "1000", "--threads", "1", "--precision",
                        "fp32"], check=True, stderr=subprocess.DEVNULL)
        (folder / "prompts.jsonl").write_text("".join(
            json.dumps({"prompt": "the fox"[:1 + i % 7], "max_tokens": 20 + 211 * i % 400}) + "\n"
            for i in range(PROMPTS)))

        undisturbed = folder / "undisturbed.jsonl"
        job = start(program, mpiexec, folder, undisturbed, 0)
        _, errors = job.communicate()
        assert job.returncode == 0, errors
        for rank, workers in ((1, 2), (0, 0)):
            output = folder / f"without-{rank}.jsonl"
            done = kill_one(program, mpiexec, folder, output, rank)
            job = start(program, mpiexec, folder, output, workers)
            _, errors = job.communicate()
            assert job.returncode == 0, errors
            assert f"resuming: {done} of {PROMPTS} prompts are done" in errors, errors
            assert output.read_bytes() == undisturbed.read_bytes()
    print("nothing was lost, nothing came twice")


if __name__ == "__main__":
    main()
