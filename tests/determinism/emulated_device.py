#!/usr/bin/env python3
"""Trains small models on the emulated device, by the program that is linked to it, and demands the same
bits for any number of workers, through an interruption, for any order that the device's scheduler chooses,
with steps captured as CUDA graphs and without, and losses that agree with the CPU's.

usage: emulated_device.py EMULATED_PROGRAM MPIEXEC [--seeds N]

The scheduler runs what is enqueued late and in an order of its own, within what streams and events
allow; each seed is another order, so that a wait that is missing somewhere changes the bits of some.
"""
import argparse
import pathlib
import json
import sys
import tempfile

from same_bits import ENVIRONMENT, OVERFLOWS, Runs, sha256, skipped_steps

STEPS = 20
WORKERS = (1, 2, 4)
VIRTUAL_WORKERS = 4

LLAMA = ["--family", "llama", "--kv-heads", 1]
FP16 = ["--precision", "fp16", "--loss-scale", "dynamic"]
# Name, options, and how far a step's loss may be from the CPU's. Both round in the same places, but
# that a GELU which is fused with a product is of what the CPU rounds first, and differ in the order of
# sums: by a few times 2^-24 of a loss near 5 in fp32. In bf16 and fp16 such a difference now and then,
# and GELU's often, moves a stored value by one unit in its last place, 2^-8 or 2^-11; of a logit that
# is below 1/2 here, and the mean over 128 tokens leaves less than a tenth of it.
DEFINITIONS = [
    ("gpt2 fp32", ["--precision", "fp32", "--dropout", 0.1], 2e-6),
    ("llama fp32", LLAMA + ["--precision", "fp32"], 2e-6),
    ("gpt2 bf16, bf16 travels", ["--precision", "bf16", "--gradient-dtype", "bf16"], 2e-3),
    ("llama bf16, recomputed", LLAMA + ["--precision", "bf16", "--recompute"], 2e-3),
    ("llama fp16", LLAMA + FP16 + ["--dropout", 0.1], 3e-4),
    # So high a rate multiplies every difference: only its bits are compared.
    (OVERFLOWS, FP16 + ["--learning-rate", 3.5, "--schedule", "inverse-sqrt"], None),
]


class EmulatedRuns(Runs):
    def command(self, run, options, workers, threads, steps):
        return [self.mpiexec, "-np", workers, self.program, "train", "--data", self.data, "--run",
                run, "--steps", steps, "--virtual-workers", VIRTUAL_WORKERS, "--threads", threads,
                "--hidden-size", 16, "--layers", 2, "--heads", 2, "--context-length", 16,
                "--batch-size", 8, "--micro-batch-size", 1, "--warmup-steps", 0,
                "--checkpoint-every", 0, "--evaluate-every", 0, "--log-every", 1000] + options


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_definition(runs, name, options, tolerance):
    """Returns the hash that all runs on the device have."""
    found = {}
    for workers in WORKERS:
        run = runs.train(options, workers, 1, STEPS, ["--device", "cuda"])
        found[workers] = sha256(run)
        print(f"{name:28} {workers} workers                {found[workers][:16]}", flush=True)
    if len(set(found.values())) != 1:
        sys.exit(f"{name}: the bits depend on the number of workers")
    eager = sha256(runs.train(options, 2, 1, STEPS, ["--device", "cuda", "--no-cuda-graph"]))
    print(f"{name:28} 2 workers, no graph      {eager[:16]}", flush=True)
    if eager != found[1]:
        sys.exit(f"{name}: the bits are others without a CUDA graph")
    if name == OVERFLOWS and not 0 < skipped_steps(run) < STEPS:
        sys.exit(f"{skipped_steps(run)} of {STEPS} steps were skipped: this shows nothing")
    if tolerance is not None:
        on_cpu = runs.train(options, 1, 1, STEPS, ["--device", "cpu"])
        furthest = max(abs(a - b) for a, b in zip(losses(run), losses(on_cpu)))
        print(f"{name:28} furthest from the CPU    {furthest:.1e}", flush=True)
        if not furthest <= tolerance:
            sys.exit(f"{name}: the losses are up to {furthest} from the CPU's")
        if sha256(on_cpu) == found[1]:
            sys.exit(f"{name}: the same bits as on the CPU: did it run on the device?")
    return found[1]


def check_algorithms(runs):
    """A run goes on, on other workers, where the library would choose other algorithms by now."""
    options = ["--precision", "bf16", "--schedule", "constant", "--device", "cuda"]
    whole = sha256(runs.train(options, 2, 1, STEPS))
    run = runs.train(options, 2, 1, STEPS // 2)
    ENVIRONMENT["LOCKSTEP_EMULATION_SPLIT_K"] = "2"
    runs.call(runs.command(run, options, 4, 1, STEPS))
    others = sha256(runs.train(options, 2, 1, STEPS))
    del ENVIRONMENT["LOCKSTEP_EMULATION_SPLIT_K"]
    if sha256(run) != whole:
        sys.exit("a run that goes on has other algorithms than before")
    if others == whole:
        sys.exit("other algorithms have the same bits: this shows nothing")
    print("a run that goes on takes the algorithms that it took before", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("mpiexec")
    parser.add_argument("--seeds", type=int, default=50)
    args = parser.parse_args()
    ENVIRONMENT["LOCKSTEP_EMULATION_DEVICES"] = "4"
    ENVIRONMENT["LOCKSTEP_EMULATION_LEAKS"] = "fail"
    with tempfile.TemporaryDirectory() as folder:
        runs = EmulatedRuns(args.program.resolve(), args.mpiexec, pathlib.Path(folder))
        hashes = {name: check_definition(runs, name, options, tolerance)
                  for name, options, tolerance in DEFINITIONS}
        if len(set(hashes.values())) != len(hashes):
            sys.exit("two definitions have the same bits: the hash sees nothing")
        check_algorithms(runs)
        name, options, _ = DEFINITIONS[2]
        for seed in range(args.seeds):
            ENVIRONMENT["LOCKSTEP_EMULATION_SEED"] = str(seed)
            graph = "--cuda-graph" if seed % 2 == 0 else "--no-cuda-graph"
            digest = sha256(runs.train(options, 2, 1, STEPS // 4, ["--device", "cuda", graph]))
            if seed == 0:
                first = digest
            if digest != first:
                sys.exit(f"scheduler seed {seed} changes the bits: a wait is missing somewhere")
        print(f"the same bits for {args.seeds} orders of the scheduler")


if __name__ == "__main__":
    main()
