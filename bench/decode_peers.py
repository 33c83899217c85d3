#!/usr/bin/env python3
"""Decoding one text, beside what else runs a model on this machine; see decode_peers.sh.

Each round runs Lockstep and its peers in turn, as whole processes, on the same Llama of random
weights. The ratio is taken round by round.
"""
import argparse
import json
import os
import pathlib
import statistics
import tempfile

from decode_quantized import FOLDER, heading, make_models, run
from train_cpu import append

# Lockstep's weights and precision, and the peers that hold about as many bytes.
ROWS = {
    "fp32": ("fp32", "fp32", [("transformers", "hf", "float32"),
                              ("CTranslate2", "ct2-float32", "float32"),
                              ("llama.cpp", "F32.gguf", "-")]),
    "bf16": ("fp32", "bf16", [("transformers", "hf", "bfloat16"), ("llama.cpp", "BF16.gguf", "-")]),
    "8 bits": ("8 bits", "fp32", [("CTranslate2", "ct2-int8", "int8"),
                                  ("llama.cpp", "Q8_0.gguf", "-")]),
    "4 bits": ("4 bits", "fp32", [("llama.cpp", "Q4_0.gguf", "-")]),
}


def measure(args, model, precision):
    done = run([args.program, "generate", "--checkpoint", model, "--prompt", "A", "--max-tokens",
                args.tokens, "--greedy", "--forbid", "<|endoftext|>", "--json", "--precision",
                precision, "--threads", args.threads])
    return json.loads(done.stdout)["tokens_per_second"]


def measure_peer(args, folder, peer, model, dtype):
    done = run([args.python, FOLDER / "decode_peer.py", peer, folder / model, dtype, args.tokens,
                args.threads])
    return float(done.stdout.split("RATE ")[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=pathlib.Path, help="a file that gets the table too")
    args = parser.parse_args()

    rates = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models = make_models(args, folder, keep_source=True)
        run([args.python, FOLDER / "decode_convert.py", folder / "hf", folder])
        for _ in range(args.rounds):
            for row, (weights, precision, peers) in ROWS.items():
                own = measure(args, models[weights], precision)
                for peer in peers:
                    theirs = measure_peer(args, folder, *peer)
                    rates.setdefault((row, peer[0]), []).append((own, theirs))
    table = [heading(args), "",
             "| weights | peer | Lockstep, tokens/s | peer, tokens/s | Lockstep / peer (min-max) |",
             "|---------|------|-------------------:|---------------:|---------------------------|"]
    for (row, peer), pairs in rates.items():
        own, theirs = (statistics.median(side) for side in zip(*pairs))
        ratios = sorted(a / b for a, b in pairs)
        table.append(f"| {row} | {peer} | {own:.2f} | {theirs:.2f} | "
                     f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) |")
    print("\n".join(table))
    append(table, args.output)


if __name__ == "__main__":
    main()
