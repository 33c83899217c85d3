#!/usr/bin/env python3
"""Lockstep's training step against PyTorch's on one GPU, in turn; see run_all.sh.

GPT-2 124M, context 1024, bf16, a table row for each micro-batch size (which is also the batch). PyTorch's
side (../train_pytorch.py) is compiled, with scaled_dot_product_attention (flash attention), fused AdamW and
a vocabulary padded to 50,304, as its users do. Each pair runs both sides one after the other, as whole
processes, and compares the median step after a warm-up; Lockstep also without CUDA graphs. MFU: 6 P + 6 layers * width * T FLOPs a token (causal)
against the matrix-product rate that `doctor` measures on this GPU. The most memory that nvidia-smi saw is not
reported: both sides' allocators keep what they had.
"""
import argparse
import json
import pathlib
import shutil
import statistics
import sys

from common import checked, metrics, prepare, run

FOLDER = pathlib.Path(__file__).resolve().parent
SIZES = {
    # name: layers, width, heads, vocabulary (0: bytes), context, micro-batches, steps, warm-up, words
    "tiny": (2, 32, 2, 0, 32, (1, 2), 3, 1, 2000),
    "small": (12, 768, 12, 50257, 1024, (4, 8, 16, 32, 64), 40, 10, 4000000),
}


def flops_per_token(layers, width, vocabulary, context):
    parameters = 12 * layers * width**2 + (vocabulary + context) * width
    return 6 * parameters + 6 * layers * width * context


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def lockstep(args, dataset, batch, *options):
    """Median seconds a step, or why there are none."""
    layers, width, heads, _, context, _, steps, warmup, _ = SIZES[args.size]
    folder = args.work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    done = run([args.program, "train", "--data", dataset, "--run", folder, "--layers", layers, "--hidden-size",
                width, "--heads", heads, "--context-length", context, "--batch-size", batch, "--micro-batch-size",
                batch, "--steps", steps + warmup, "--learning-rate", 1e-4, "--precision", "bf16", "--device", "cuda",
                "--evaluate-every", 0, "--checkpoint-every", 0, "--log-every", steps, *options])
    if done.returncode != 0:
        return last_line(done.stderr)
    return statistics.median(metrics(folder, "step_seconds")[warmup:])


def pytorch(args, batch):
    layers, width, heads, vocabulary, context, _, steps, warmup, _ = SIZES[args.size]
    done = run([args.python, FOLDER.parent / "train_pytorch.py", "--device", "cuda", "--layers", layers,
                "--hidden-size", width, "--heads", heads, "--vocab-size", -(-vocabulary // 64) * 64, "--context-length",
                context, "--batch-size", batch, "--steps", steps, "--warmup", warmup, "--precision", "bf16",
                "--compile"])
    if done.returncode != 0:
        return last_line(done.stderr)
    return json.loads(last_line(done.stdout))["step_seconds"]


def figure(side, tokens):
    failures = [x for x in side if isinstance(x, str)]
    return failures[0][:80] if failures else f"{tokens / statistics.median(side):,.0f}"


def row(args, dataset, batch, peak):
    layers, width, _, vocabulary, context, *_ = SIZES[args.size]
    runs = []
    for _ in range(args.pairs):
        runs.append((lockstep(args, dataset, batch), lockstep(args, dataset, batch, "--no-cuda-graph"),
                     pytorch(args, batch) if args.python else "left out"))
    ours, eager, theirs = zip(*runs)
    tokens = batch * context
    ratio, share = "", ""
    if not any(isinstance(x, str) for x in ours):
        rate = tokens / statistics.median(ours)
        share = f"{rate * flops_per_token(layers, width, vocabulary or 257, context) / peak:.0%}"
        if not any(isinstance(x, str) for x in theirs):
            ratios = sorted(b / a for a, b in zip(ours, theirs))
            ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    return (f"| {batch} | {figure(ours, tokens)} | {figure(eager, tokens)} | {figure(theirs, tokens)} | {ratio} | "
            f"{share} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--python", help="that has PyTorch; without, only Lockstep runs")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, help="a file that gets the table too")
    args = parser.parse_args()

    layers, width, _, vocabulary, context, batches, *_, words = SIZES[args.size]
    dataset = prepare(args.program, args.work, words, vocabulary)
    report = json.loads(checked([args.program, "doctor", "--json"]))
    peak = report["gpu_bf16_flops"]
    gpu = report["workers"][0]["cuda"]["gpus"][0]["name"]
    torch = "left out"
    if args.python:
        torch = checked([args.python, "-c", "import torch; print(torch.__version__)"]).strip()
    table = [f"{gpu}, bf16 products {peak / 1e12:.4g} TFLOP/s. {layers} layers, width {width}, context {context}, "
             f"bf16; tokens a second, medians; pairs of runs: {args.pairs}. PyTorch {torch}, compiled.", "",
             "| micro-batch | Lockstep | without CUDA graphs | PyTorch compiled | Lockstep / PyTorch (min-max) | "
             "MFU, Lockstep |",
             "|---:|---:|---:|---:|---|---:|"]
    print("\n".join(table), flush=True)
    for batch in batches:
        table.append(row(args, dataset, batch, peak))
        print(table[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(table) + "\n")
    return 0 if any("%" in line for line in table) else 1


if __name__ == "__main__":
    sys.exit(main())
