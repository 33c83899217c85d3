#!/usr/bin/env python3
"""Lockstep's training step against PyTorch's on this machine, in turn; see train_cpu.sh.

Each round runs the sides one after the other, as whole processes, and compares the median step
after a warm-up, and the most memory that a side had in use. Prints a table of medians, and of the
ratio PyTorch / Lockstep round by round.
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


def measured(command):
    """Standard output of a command, and the most memory that it had in use, in MiB; its errors are
    ours."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            sys.exit(f"{errors.read()[-2000:]}{command[0]} failed with exit code "
                     f"{process.returncode}")
        return out.read(), usage.ru_maxrss / 1024


def output_of(command):
    return measured(command)[0]


def lockstep(args, dataset, shape, micro_batch=None):
    """Seconds a step, and MiB."""
    layers, width, heads, _, batch, context, steps, warmup = shape
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        _, memory = measured([
            args.program, "train", "--data", dataset, "--run", run, "--layers", layers,
            "--hidden-size", width, "--heads", heads, "--context-length", context,
            "--batch-size", batch, "--micro-batch-size", micro_batch or batch,
            "--steps", steps + warmup, "--learning-rate", 1e-4, "--precision", args.precision,
            "--threads", args.threads, "--log-every", 1])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["step_seconds"] for line in lines[warmup:]), memory


def pytorch(args, shape, mode):
    """Seconds a step, and MiB."""
    layers, width, heads, vocabulary, batch, context, steps, warmup = shape
    command = [args.python, FOLDER / "train_pytorch.py", "--layers", layers,
               "--hidden-size", width, "--heads", heads, "--vocab-size", vocabulary,
               "--context-length", context, "--batch-size", batch, "--steps", steps, "--warmup",
               warmup, "--threads", args.threads, "--precision", args.precision]
    command += ["--compile"] if mode == "compiled" else []
    output, memory = measured(command)
    return json.loads(output.splitlines()[-1])["step_seconds"], memory


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


def append(table, output):
    """Adds the lines of a table to a file, if one was named."""
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            file.write("\n".join(table) + "\n\n")


def heading(args):
    torch = output_of([args.python, "-c", "import torch; print(torch.__version__)"]).strip()
    return (f"{datetime.date.today()}, commit {commit()}, {machine()}. {args.precision}, "
            f"{args.threads} threads, PyTorch {torch}; seconds a step, "
            f"medians; rounds: {args.pairs}.")


def measured_rows(args, name):
    shape = MODELS[name]
    dataset = prepare(args, shape[3])
    rounds = []
    for _ in range(args.pairs):
        ours = lockstep(args, dataset, shape)
        rounds.append((ours, {mode: pytorch(args, shape, mode) for mode in args.modes}))
    for mode in args.modes:
        pairs = [(*ours, *theirs[mode]) for ours, theirs in rounds]
        seconds, memory, their_seconds, their_memory = (
            statistics.median(side) for side in zip(*pairs))
        ratios = sorted(pair[2] / pair[0] for pair in pairs)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        yield (f"| {name:5} | {mode:8} | {seconds:8.4f} | {their_seconds:8.4f} | {spread:24} | "
               f"{shape[4] * shape[5] / seconds:17.0f} | {memory:.0f} / {their_memory:.0f} MiB |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--python", required=True, help="of the environment that has PyTorch")
    parser.add_argument("--text", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"],
                        default=["eager", "compiled"], help="of PyTorch")
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
    say("| model | PyTorch  | Lockstep |  PyTorch | PyTorch / Lockstep       | Lockstep tokens/s | "
        "memory, both |")
    say("|-------|----------|---------:|---------:|--------------------------|------------------:|"
        "-------------|")
    for name in args.models:
        for row in measured_rows(args, name):
            say(row)
    append(table, args.output)


if __name__ == "__main__":
    main()
