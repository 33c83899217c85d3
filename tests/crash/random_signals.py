#!/usr/bin/env python3
"""A run of many short starts, each of which gets signals at random moments: from its very start on, in
steps, evaluations and saves, to any worker. Each must save and end with 75, no step may be lost, and in the
end the run must have the bits of one that nobody disturbed.

usage: random_signals.py PROGRAM MPIEXEC
LOCKSTEP_CRASH_STARTS: how many starts (5); the promise is for 40, with 100 signals.
"""
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import job

WORKERS = 2
SIGNALS = [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT]
STEPS_A_START = 40
STEP_S = 0.02  # and more, where a signal finds a run that computes, evaluates or saves
SAME_REQUEST_S = 0.05  # signals that follow each other this closely are one request (launch/signals.cpp)


def main():
    program, mpiexec = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    starts = int(os.environ.get("LOCKSTEP_CRASH_STARTS", "5"))
    seed = int(os.environ.get("LOCKSTEP_CRASH_SEED", "1"))
    print(f"{starts} starts, seed {seed}")
    random.seed(seed)
    steps = STEPS_A_START * starts
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        data = job.make_data(program, folder)
        undisturbed, run = folder / "undisturbed", folder / "disturbed"
        options = ["--checkpoint-every", 7, "--evaluate-every", 11, "--keep", 2]
        job.train_undisturbed(job.command(program, data, undisturbed, steps, *options))

        words = job.command(program, data, run, steps, *options)
        sent, stopped = 0, 0
        for start in range(starts):
            before = job.last_step(run)
            if before == steps:
                break
            it = job.Job(mpiexec, WORKERS, words, run)
            workers = it.wait_for_workers(WORKERS)
            if start % 3 == 0:  # start-up, which takes about a second
                time.sleep(random.random())
            else:
                it.wait_for_step(min(before + random.randrange(1, STEPS_A_START), steps))
                time.sleep(random.random() * STEP_S)
            first = time.monotonic()
            for _ in range(1 + start % 4):
                if it.ended() or time.monotonic() - first > 3 * SAME_REQUEST_S:
                    break
                try:
                    os.kill(random.choice(workers), random.choice(SIGNALS))
                except ProcessLookupError:
                    break
                sent += 1
                time.sleep(random.random() * SAME_REQUEST_S)
            code, errors = it.wait()
            made, saved = job.last_step(run), job.saved_step(run)
            print(f"start {start + 1}: exit code {code}, steps {before} to {made}, saved {saved}")
            assert code == 75 or (code == 0 and made == steps), errors
            assert saved == made, f"{made - saved} steps were lost:\n{errors}"
            assert made > before
            state = job.status(program, run)
            assert state["state"] == ("stopped" if code == 75 else "finished"), state
            assert state["step"] == made and state["last_checkpoint"]["step"] == saved, state
            stopped += code == 75
        assert stopped > 0, "nothing was stopped: this shows nothing"
        if job.last_step(run) < steps:
            job.train_undisturbed(words)
        job.expect_same(program, undisturbed, run)
        print(f"{sent} signals in {starts} starts, {stopped} of them stopped: no step lost, the same bits")


if __name__ == "__main__":
    main()
