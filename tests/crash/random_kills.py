#!/usr/bin/env python3
"""A random worker is killed (SIGKILL) at random moments, and the run started again each time: the job must
end by itself, `status` must see that it is lost, the next start must take the run over at once and train on,
and in the end the run must have the bits of one that nobody disturbed.

usage: random_kills.py PROGRAM MPIEXEC
LOCKSTEP_CRASH_KILLS: how often (2). With 20 or more also how quickly: detected within 5 s, training again
within 30 s of the kill.
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
TIMED = 20
DETECTED_S, TRAINING_AGAIN_S = 5, 30
STEPS_A_KILL = 100
MOST_STEPS_BEFORE = 30


def main():
    program, mpiexec = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    kills = int(os.environ.get("LOCKSTEP_CRASH_KILLS", "2"))
    seed = int(os.environ.get("LOCKSTEP_CRASH_SEED", "1"))
    print(f"{kills} kills, seed {seed}")
    random.seed(seed)
    steps = STEPS_A_KILL * (kills + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        data = job.make_data(program, folder)
        undisturbed, run = folder / "undisturbed", folder / "disturbed"
        options = ["--checkpoint-every", 5, "--evaluate-every", 0, "--keep", 2]
        job.train_undisturbed(job.command(program, data, undisturbed, steps, *options))

        words = job.command(program, data, run, steps, *options)
        it, slowest_end, slowest_again = job.Job(mpiexec, WORKERS, words, run), 0, 0
        it.wait_for_step(1)
        for kill in range(kills):
            workers = it.wait_for_workers(WORKERS)
            it.wait_for_step(job.last_step(run) + random.randrange(MOST_STEPS_BEFORE))
            rank = random.randrange(WORKERS)
            os.kill(workers[rank], signal.SIGKILL)
            killed = time.monotonic()
            code, errors = it.wait()
            end = time.monotonic() - killed
            assert code not in (0, 75), errors
            saved = job.saved_step(run)
            state = job.status(program, run)
            assert state["state"] in ("lost", "failed"), state

            it = job.Job(mpiexec, WORKERS, words, run)
            # Another process, which has made steps after the checkpoint again.
            while (now := job.noted(run))["pid"] == state["pid"] or now["step"] <= saved:
                if it.ended():
                    sys.exit(f"it ended by itself:\n{it.process.stderr.read()}")
                time.sleep(0.002)
            again = time.monotonic() - killed
            print(f"kill {kill + 1} of worker {rank}: exit code {code} after {end:.1f} s, saved {saved}, "
                  f"training again after {again:.1f} s")
            slowest_end, slowest_again = max(end, slowest_end), max(again, slowest_again)
        os.kill(it.wait_for_workers(WORKERS)[0], signal.SIGUSR1)
        code, errors = it.wait()
        assert code in (0, 75), errors
        if code == 75:
            job.train_undisturbed(words)
        job.expect_same(program, undisturbed, run)
        print(f"{kills} kills: ended within {slowest_end:.1f} s, training again within {slowest_again:.1f} s, "
              "the same bits")
        if kills >= TIMED:
            assert slowest_end <= DETECTED_S and slowest_again <= TRAINING_AGAIN_S


if __name__ == "__main__":
    main()
