#!/usr/bin/env python3
"""Lockstep's training step against PyTorch's on this machine, in turn; see train_cpu.sh.

Each pair runs both sides one after the other, as whole processes, and compares the median step
after a warm-up. Prints a table of medians and of the ratio PyTorch / Lockstep pair by pair.
"""
import argparse
import datetime
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
FOLDER = pathlib.Path(__file__).resolve().parent


def output_of(command):
    """Standard output of a command; its errors are ours."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stderr[-2000:]}{command[0]} failed with exit code {done.returncode}")
    return done.stdout


def lockstep(args, dataset, shape):
    layers, width, heads, _, batch, context, steps, warmup = shape
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        output_of([args.program, "train", "--data", dataset, "--run", run, "--layers", layers,
                   "--hidden-size", width, "--heads", heads, "--context-length", context,
                   "--batch-size", batch, "--micro-batch-size", batch,
                   "--steps", steps + warmup, "--learning-rate", 1e-4,
                   "--precision", args.precision, "--threads", args.threads, "--log-every", 1])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["step_seconds"] for line in lines[warmup:])


def pytorch(args, shape):
    layers, width, heads, vocabulary, batch, context, steps, warmup = shape
    command = [args.python, FOLDER / "train_pytorch.py", "--layers", layers,
               "--hidden-size", width, "--heads", heads, "--vocab-size", vocabulary,
               "--context-length", context, "--batch-size", batch, "--steps", steps, "--warmup",
               warmup, "--threads", args.threads, "--precision", args.precision]
    command += ["--compile"] if args.compile else []
    return json.loads(output_of(command).splitlines()[-1])["step_seconds"]


def prepare(args, vocabulary):
    dataset = args.work / f"data-{vocabulary}"
    if not (dataset / "dataset.json").exists():
        output_of([args.program, "prepare", "--input", args.text, "--output", dataset,
                   "--vocab-size", vocabulary])
    return dataset


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line),
                 "unknown processor")
    flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {f} " in info]
    return f"{model}, {os.cpu_count()} cores, {' '.join(flags)}"


def commit():
    git = ["git", "-C", FOLDER]
    changed = " with changes" if output_of(git + ["status", "--porcelain", "-uno"]) else ""
    return output_of(git + ["rev-parse", "--short", "HEAD"]).strip() + changed


def heading(args):
    torch = output_of([args.python, "-c", "import torch; print(torch.__version__)"]).strip()
    return (f"{datetime.date.today()}, commit {commit()}, {machine()}. {args.precision}, "
            f"{args.threads} threads, PyTorch {torch}; seconds a step, "
            f"medians; pairs of runs: {args.pairs}.")


def measured_row(args, name):
    shape = MODELS[name]
    dataset = prepare(args, shape[3])
    pairs = [(lockstep(args, dataset, shape), pytorch(args, shape)) for _ in range(args.pairs)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs))
    ratios = sorted(b / a for a, b in pairs)
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    return (f"| {name:5} | {ours:8.4f} | {theirs:16.4f} | {spread:24} | "
            f"{shape[4] * shape[5] / ours:17.0f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--python", required=True, help="of the environment that has PyTorch")
    parser.add_argument("--text", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="PyTorch compiled, not eager")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=pathlib.Path, help="a file that gets the table too")
    args = parser.parse_args()

    table = []

    def say(line):
        table.append(line)
        print(line, flush=True)

    say(heading(args))
    say("")
    side = "PyTorch compiled" if args.compile else "PyTorch eager"
    say(f"| model | Lockstep | {side:16} | PyTorch / Lockstep       | Lockstep tokens/s |")
    say("|-------|---------:|-----------------:|--------------------------|------------------:|")
    for name in args.models:
        say(measured_row(args, name))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("a") as file:
            file.write("\n".join(table) + "\n\n")


if __name__ == "__main__":
    main()
