#!/usr/bin/env python3
"""Lockstep's training step against PyTorch's on this machine, in turn; see train_cpu.sh.

Each pair runs both sides one after the other, as whole processes, and compares the median step
after a warm-up. Prints a table of medians and of the ratio PyTorch / Lockstep pair by pair.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

MODELS = {
    # name: layers, width, heads, vocabulary, sequences, tokens, steps, warm-up
    "0.9M": (4, 128, 4, 1024, 16, 128, 30, 10),
    "4M": (4, 256, 4, 2048, 8, 128, 20, 5),
    "12M": (6, 384, 6, 4096, 4, 256, 10, 3),
    "124M": (12, 768, 12, 50257, 1, 1024, 3, 1),
}


def lockstep(program, dataset, shape, precision, threads):
    layers, width, heads, _, batch, context, steps, warmup = shape
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        command = [program, "train", "--data", dataset, "--run", run, "--layers", layers,
                   "--hidden-size", width, "--heads", heads, "--context-length", context,
                   "--batch-size", batch, "--micro-batch-size", batch,
                   "--steps", steps + warmup, "--learning-rate", 1e-4, "--precision", precision,
                   "--threads", threads, "--log-every", 1]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.PIPE)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["step_seconds"] for line in lines[warmup:])


def pytorch(python, shape, precision, threads, compiled):
    layers, width, heads, vocabulary, batch, context, steps, warmup = shape
    command = [python, pathlib.Path(__file__).with_name("train_pytorch.py"), "--layers", layers,
               "--hidden-size", width, "--heads", heads, "--vocab-size", vocabulary,
               "--context-length", context, "--batch-size", batch, "--steps", steps, "--warmup",
               warmup, "--threads", threads, "--precision", precision]
    command += ["--compile"] if compiled else []
    output = subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return json.loads(output.stdout.splitlines()[-1])["step_seconds"]


def prepare(program, folder, vocabulary, text):
    dataset = folder / f"data-{vocabulary}"
    if not (dataset / "dataset.json").exists():
        subprocess.run([program, "prepare", "--input", text, "--output", dataset, "--vocab-size",
                        str(vocabulary)], check=True)
    return dataset


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line),
                 "unknown processor")
    flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {f} " in info]
    return f"{model}, {os.cpu_count()} cores, {' '.join(flags)}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--python", required=True, help="of the environment that has PyTorch")
    parser.add_argument("--text", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["0.9M", "4M", "12M"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="PyTorch compiled, not eager")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    side = "PyTorch compiled" if args.compile else "PyTorch eager"
    print(f"{machine()}; {args.precision}, {args.threads} threads, {args.pairs} pairs, "
          "median seconds a step")
    print(f"{'model':6} {'Lockstep':>10} {side:>17} {'ratio: median':>14} {'(min-max)':>13} "
          f"{'Lockstep tokens/s':>18}")
    for name in args.models:
        shape = MODELS[name]
        dataset = prepare(args.program, args.work, shape[3], args.text)
        pairs = [(lockstep(args.program, dataset, shape, args.precision, args.threads),
                  pytorch(args.python, shape, args.precision, args.threads, args.compile))
                 for _ in range(args.pairs)]
        ours, theirs = (statistics.median(side) for side in zip(*pairs))
        ratios = sorted(b / a for a, b in pairs)
        print(f"{name:6} {ours:10.4f} {theirs:17.4f} {statistics.median(ratios):14.2f} "
              f"{f'({ratios[0]:.2f}-{ratios[-1]:.2f})':>13} {shape[4] * shape[5] / ours:18.0f}",
              flush=True)


if __name__ == "__main__":
    sys.exit(main())
