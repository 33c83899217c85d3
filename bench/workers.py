#!/usr/bin/env python3
"""What several workers on one machine cost: pairs of runs in turn, the ratio pair by pair; see workers.sh.

  ordered / all-reduce   the same bits on any number of workers, against the library's own sum
  2 x 1 / 1 x 2          two workers with a thread each, against one worker with two
  memory                 MiB a worker, as `train` plans it, over the number of workers
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

from train_cpu import MODELS, machine, prepare

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                   OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_hwloc_base_binding_policy="none")


def train(program, dataset, shape, workers, threads, precision, more=(), steps=None):
    """Median seconds a step after the warm-up, and MiB a worker."""
    layers, width, heads, _, batch, context, usual_steps, warmup = shape
    batch = max(4, batch)
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        command = ["mpirun", "-np", workers, program, "train", "--data", dataset, "--run", run,
                   "--layers", layers, "--hidden-size", width, "--heads", heads,
                   "--context-length", context, "--batch-size", batch, "--micro-batch-size", 1,
                   "--steps", (steps or usual_steps) + warmup, "--precision", precision,
                   "--threads", threads, "--checkpoint-every", 0, "--evaluate-every", 0, *more]
        done = subprocess.run([str(word) for word in command], env=ENVIRONMENT, check=True,
                              capture_output=True, text=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    memory = int(re.search(r"(\d+) MiB a worker", done.stderr).group(1))
    return statistics.median(line["step_seconds"] for line in lines[warmup:]), memory


def compare(name, title, pairs, first, second):
    results = [(first()[0], second()[0]) for _ in range(pairs)]
    a, b = (statistics.median(side) for side in zip(*results))
    ratios = sorted(x / y for x, y in results)
    print(f"| {name} | {title} | {a * 1e3:.1f} | {b * 1e3:.1f} | {statistics.median(ratios):.3f} | "
          f"{ratios[0]:.3f}-{ratios[-1]:.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["4M", "12M"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    print(f"{machine()}; {args.precision}, {args.pairs} pairs, median milliseconds a step\n")
    print("| model | A / B | A, ms | B, ms | A / B | min-max |")
    print("|---|---|---|---|---|---|")
    for name in args.models:
        shape = MODELS[name]
        dataset = prepare(args, shape[3])

        def run(workers, threads, *more):
            return lambda: train(args.program, dataset, shape, workers, threads, args.precision,
                                 more)

        compare(name, "ordered / all-reduce, 2 workers", args.pairs, run(2, 1),
                run(2, 1, "--reduce", "all-reduce"))
        compare(name, "bf16 gradients / fp32, 2 workers", args.pairs,
                run(2, 1, "--gradient-dtype", "bf16"), run(2, 1))
        compare(name, "1 worker x 2 threads / 2 x 1, same bits", args.pairs,
                run(1, 2, "--virtual-workers", 2), run(2, 1))
    print("\n| model | MiB a worker, 1 worker | 2 | 4 |\n|---|---|---|---|")
    for name in args.models:
        shape = MODELS[name]
        dataset = prepare(args, shape[3])
        memory = [train(args.program, dataset, shape, workers, 1, args.precision, steps=1)[1]
                  for workers in (1, 2, 4)]
        print(f"| {name} | {' | '.join(map(str, memory))} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
