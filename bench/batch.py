#!/usr/bin/env python3
"""Throughput of generation over the number of prompts that run together; see batch.sh.

A model's weights do not matter to the time, so it is trained for one step. Each run continues 16
prompts of equal length, one after the other or together, in turn: pairs of runs, and the ratio pair
by pair. A run's throughput is that of its own clock: tokens, over the time that they took after the
prompts, which go one after the other in both.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from train_cpu import MODELS, machine, prepare

PROMPTS = 16


def checkpoint(args, name):
    run = args.work / f"batch-{name}"
    # What is there goes on, or is done.
    layers, width, heads, vocab, _, context, _, _ = MODELS[name]
    command = [args.program, "train", "--data", prepare(args, vocab), "--run", run, "--layers",
               layers, "--hidden-size", width, "--heads", heads, "--context-length", context,
               "--batch-size", 1, "--steps", 1, "--evaluate-every", 0, "--precision", "fp32"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return run


def throughput(args, run, batch_size):
    """Tokens a second, and the ids of each prompt."""
    command = [args.program, "generate", "--checkpoint", run, "--json", "--precision",
               args.precision, "--max-tokens", args.tokens, "--temperature", 1, "--batch-size",
               batch_size, "--forbid", "<|endoftext|>"]
    if args.threads:
        command += ["--threads", args.threads]
    for i in range(PROMPTS):
        command += ["--prompt", f"{chr(ord('A') + i)} word, n. "]
    out = subprocess.run([str(word) for word in command], check=True, capture_output=True,
                         text=True).stdout
    lines = [json.loads(line) for line in out.splitlines()]
    assert all(len(line["tokens"]) == args.tokens for line in lines)
    seconds = [len(line["tokens"]) / line["tokens_per_second"] for line in lines]
    # Together, all begin to grow when the last prompt is done, and end at the same time.
    whole = sum(seconds) if batch_size == 1 else min(seconds)
    return PROMPTS * args.tokens / whole, [line["tokens"] for line in lines]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["12M", "124M"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    print(f"{machine()}; {args.precision}, {args.pairs} pairs, {PROMPTS} prompts, {args.tokens} "
          "tokens each, median tokens a second\n")
    print(f"| model | {PROMPTS} together | one by one | ratio | min-max |\n|---|---|---|---|---|")
    for name in args.models:
        run = checkpoint(args, name)
        pairs = []
        for _ in range(args.pairs):
            together, ids = throughput(args, run, PROMPTS)
            alone, same_ids = throughput(args, run, 1)
            assert ids == same_ids, "a prompt's tokens depend on its batch"
            pairs.append((together, alone))
        a, b = (statistics.median(side) for side in zip(*pairs))
        ratios = sorted(x / y for x, y in pairs)
        print(f"| {name} | {a:.1f} | {b:.1f} | {statistics.median(ratios):.2f} | "
              f"{ratios[0]:.2f}-{ratios[-1]:.2f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
