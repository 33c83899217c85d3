#!/usr/bin/env python3
"""How near decoding with quantized weights comes to the speed of memory, one prompt at a time.

    python3 bench/decode_quantized.py --program build/lockstep [--layers 10] [--hidden-size 2048]
                                      [--threads N] [--rounds 5] [--output FILE]

Makes a Llama of random weights, larger than the caches, and its versions of 8 and 4 bits, and lets
each generate in turn, the first in fp32 and in bf16. `generate --verbose` reads memory with the
same threads right before the text, and gives the bytes that a token needs, per second, as a share of
that; the table has the medians of the rounds.
"""
import argparse
import array
import datetime
import json
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile

from train_cpu import append

FOLDER = pathlib.Path(__file__).resolve().parent
MEMORY = re.compile(r"then +\d+ tokens in .*?, ([\d.,]+) tokens/s\n +memory +([\d.]+) (\w+) a token, "
                    r"([\d.]+) GB/s: ([\d.]+) % of the ([\d.]+) GB/s")


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stderr[-2000:]}{command[0]} failed with exit code {done.returncode}")
    return done


def write_model(folder, args, tokenizer):
    """A Hugging Face folder of random weights: the same 2^18 normal numbers again and again."""
    hidden, ffn, vocabulary = args.hidden_size, 4 * args.hidden_size, 257
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(args.layers):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{prefix}self_attn.{name}.weight"] = (hidden, hidden)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (ffn, hidden)
        shapes[f"{prefix}mlp.up_proj.weight"] = (ffn, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, ffn)
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    numbers = random.Random(1)
    block = array.array("f", (numbers.gauss(0, 0.02) for _ in range(1 << 18)))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = math.prod(shape)
            while len(shape) == 2 and left > 0:
                part = min(left, len(block))
                file.write(memoryview(block)[:part])
                left -= part
            file.write(array.array("f", [1.0] * left))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary,
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": args.layers,
        "num_attention_heads": hidden // 128, "num_key_value_heads": hidden // 128,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": True}))
    (folder / "tokenizer.json").write_text(tokenizer.read_text())


def make_models(args, folder, keep_source=False):
    """The checkpoints by weights; the Hugging Face folder is folder/hf."""
    (folder / "text.txt").write_text("A text.\n" * 50)
    run([args.program, "prepare", "--input", folder / "text.txt", "--output", folder / "data",
         "--tokenizer", "bytes"])
    hugging_face = folder / "hf"
    hugging_face.mkdir()
    write_model(hugging_face, args, folder / "data" / "tokenizer.json")
    whole = folder / "whole.h5"
    run([args.program, "checkpoint", "import", hugging_face, "--output", whole])
    if not keep_source:
        (hugging_face / "model.safetensors").unlink()
    models = {"fp32": whole}
    for bits in ("8", "4"):
        models[f"{bits} bits"] = folder / f"{bits}.h5"
        run([args.program, "checkpoint", "quantize", whole, "--bits", bits, "--output",
             models[f"{bits} bits"], "--threads", args.threads])
    return models


def measure(args, model, precision):
    """Tokens a second, bytes a token as text, GB/s, GB/s of memory, their ratio in per cent."""
    done = run([args.program, "generate", "--checkpoint", model, "--prompt", "A", "--max-tokens",
                args.tokens, "--greedy", "--forbid", "<|endoftext|>", "--verbose", "--precision",
                precision, "--threads", args.threads])
    found = MEMORY.search(done.stderr)
    if not found:
        sys.exit(f"no rates in what generate says:\n{done.stderr}")
    rate, size, unit, reached, share, memory = found.groups()
    return float(rate.replace(",", "")), f"{size} {unit}", float(reached), float(memory), float(share)


def heading(args):
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line),
                 "unknown processor")
    commit = run(["git", "-C", FOLDER, "rev-parse", "--short", "HEAD"]).stdout.strip()
    return (f"{datetime.date.today()}, commit {commit}, {model}, {args.threads} threads. A Llama of "
            f"{args.layers} layers of width {args.hidden_size}, {args.tokens} tokens after a prompt "
            f"of one; medians of {args.rounds} rounds, in turn.")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=pathlib.Path, help="a file that gets the table too")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        models = make_models(args, pathlib.Path(name))
        rows = {"fp32": ("fp32", "fp32"), "bf16": ("fp32", "bf16"), "8 bits": ("8 bits", "fp32"),
                "4 bits": ("4 bits", "fp32")}
        results = {row: [] for row in rows}
        for _ in range(args.rounds):
            for row, (weights, precision) in rows.items():
                results[row].append(measure(args, models[weights], precision))
    table = [heading(args), "",
             "| weights | tokens/s | a token reads | GB/s | memory, GB/s | share of memory's rate |",
             "|---------|---------:|--------------:|-----:|-------------:|------------------------|"]
    for model, rounds in results.items():
        middle = [statistics.median(side) for side in zip(*[(r[0], r[2], r[3], r[4]) for r in rounds])]
        shares = sorted(r[4] for r in rounds)
        table.append(f"| {model:7} | {middle[0]:8.2f} | {rounds[0][1]:>13} | {middle[1]:4.1f} | "
                     f"{middle[2]:12.1f} | {middle[3]:.0f} % ({shares[0]:.0f}-{shares[-1]:.0f}) |")
    print("\n".join(table))
    append(table, args.output)


if __name__ == "__main__":
    main()
