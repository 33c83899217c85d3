#!/usr/bin/env python3
"""Trains the same run on different numbers of workers and threads, with and without recomputation and
interruption, and demands the same bits: one SHA-256 over all weights and moments, read with h5py.

usage: same_bits.py PROGRAM MPIEXEC [--all]

Without --all, a few combinations that a build server can afford. 24 virtual workers throughout: what a
run is defined over (docs/determinism.md). Each row of the table is one run; runs of one definition must
have one hash, those of different definitions different ones.
"""
import argparse
import hashlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import h5py

VIRTUAL_WORKERS = 24
STOPPED = 75
OVERFLOWS = "gpt2 fp16 that overflows"

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                   OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_hwloc_base_binding_policy="none")


class Runs:
    def __init__(self, program, mpiexec, folder):
        self.program, self.mpiexec, self.folder = program, mpiexec, folder
        self.data = folder / "data"
        self.count = 0
        text = folder / "text.txt"
        words = "the same bits on any number of workers through any interruption".split()
        choose = random.Random(1)
        text.write_text("\n".join(" ".join(choose.choices(words, k=9)) for _ in range(1500)))
        self.call([program, "prepare", "--input", text, "--output", self.data, "--tokenizer",
                   "bytes"])

    def call(self, command, codes=(0,)):
        done = subprocess.run([str(word) for word in command], env=ENVIRONMENT, text=True,
                              capture_output=True, timeout=1200)
        if done.returncode not in codes:
            sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stderr}")
        return done.returncode

    def command(self, run, options, workers, threads, steps):
        return [self.mpiexec, "-np", workers, self.program, "train", "--data", self.data, "--run",
                run, "--steps", steps, "--virtual-workers", VIRTUAL_WORKERS, "--threads", threads,
                "--hidden-size", 16, "--layers", 2, "--heads", 2, "--context-length", 16,
                "--checkpoint-every", 0, "--evaluate-every", 0, "--log-every", 1000] + options

    def train(self, options, workers, threads, steps, more=()):
        """A whole run; returns its folder."""
        self.count += 1
        run = self.folder / f"run-{self.count}"
        self.call(self.command(run, options + list(more), workers, threads, steps))
        return run

    def train_interrupted(self, options, stops, steps):
        """Interrupted when it has done about so many steps, and resumed on other workers."""
        self.count += 1
        run = self.folder / f"run-{self.count}"
        interruptions = 0
        for workers, stop in stops:
            command = self.command(run, options, workers, 1, steps)
            job = subprocess.Popen([str(word) for word in command], env=ENVIRONMENT,
                                   stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            while stop and job.poll() is None and steps_done(run) < stop:
                time.sleep(0.002)
            if stop and job.poll() is None:
                job.send_signal(signal.SIGUSR1)  # which mpirun passes on
            _, errors = job.communicate(timeout=1200)
            if job.returncode not in (0, STOPPED):
                sys.exit(f"interrupted run ended with {job.returncode}:\n{errors}")
            interruptions += job.returncode == STOPPED
        if interruptions == 0:
            sys.exit("the run was over before it could be interrupted")
        return run


def steps_done(run):
    try:
        return (run / "metrics.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


def sha256(run):
    """Over every weight and moment of the newest checkpoint, in order."""
    digest = hashlib.sha256()
    index = sorted((run / "checkpoints").iterdir())[-1] / "index.h5"
    with h5py.File(index, "r") as file:
        names = []
        file.visititems(lambda name, item: names.append(name)
                        if isinstance(item, h5py.Dataset) and item.is_virtual else None)
        for name in sorted(names):
            digest.update(name.encode())
            digest.update(file[name][()].tobytes())
    return digest.hexdigest()


def skipped_steps(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line)["skipped"] for line in lines)


def definitions(everything):
    """What a run is defined by: these must not be changed by how it is run."""
    llama = ["--family", "llama", "--kv-heads", 1]
    fp16 = ["--precision", "fp16", "--loss-scale", "dynamic"]
    rows = [
        ("gpt2 fp32", ["--precision", "fp32", "--dropout", 0.1, "--batch-size", 24]),
        ("llama bf16, accumulation 3", llama + ["--precision", "bf16", "--batch-size", 72,
                                                "--micro-batch-size", 1]),
        # So high a rate lets gradients overflow in the first steps, and learn after that.
        (OVERFLOWS, fp16 + ["--dropout", 0.1, "--batch-size", 24, "--learning-rate", 1.85,
                            "--schedule", "inverse-sqrt", "--warmup-steps", 0]),
    ]
    if everything:
        rows = rows[2:]  # the others are among these
        for family, precision, (batch, micro) in itertools.product(
                ([], llama), ("fp32", "bf16", "fp16"), ((24, 1), (72, 1), (96, 4), (288, 4))):
            rows.append((f"{'llama' if family else 'gpt2'} {precision}, {batch // 24 // micro} x "
                         f"{micro}", family + ["--precision", precision, "--dropout", 0.1,
                                               "--batch-size", batch, "--micro-batch-size", micro]))
        rows.append(("gpt2 fp32, bf16 travels", ["--precision", "fp32", "--gradient-dtype", "bf16",
                                                 "--batch-size", 24]))
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("mpiexec")
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    steps = 40 if args.all else 16
    stops = [(2, 7), (6, 23), (3, 0)] if args.all else [(2, 3), (1, 7), (3, 0)]
    ways = ([(1, 1), (1, 2), (1, 3), (2, 1), (3, 2), (4, 1), (6, 1), (8, 1)] if args.all
            else [(1, 2), (2, 1), (4, 1)])

    hashes, wrong = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(args.program.resolve(), args.mpiexec, pathlib.Path(folder))
        for name, options in definitions(args.all):
            rows = [(f"{workers} workers x {threads} threads",
                     runs.train(options, workers, threads, steps)) for workers, threads in ways]
            rows.append(("recomputed", runs.train(options, 2, 1, steps, ["--recompute"])))
            rows.append((f"interrupted: {', '.join(f'{w} workers' for w, _ in stops)}",
                         runs.train_interrupted(options, stops, steps)))
            found = [sha256(run) for _, run in rows]
            for (way, run), digest in zip(rows, found):
                same = digest == found[0]
                wrong += not same
                skipped = skipped_steps(run)
                if name == OVERFLOWS and not 0 < skipped < steps:
                    sys.exit(f"{skipped} of {steps} steps were skipped: this shows nothing")
                print(f"{name:32} {way:38} {digest[:16]} {'' if same else 'DIFFERS'}"
                      f"{f'({skipped} skipped)' if skipped else ''}", flush=True)
            if found[0] in hashes:
                sys.exit(f"{name} and {hashes[found[0]]} have the same bits: the hash sees nothing")
            hashes[found[0]] = name
    print("the same bits" if not wrong else f"{wrong} runs differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
