#!/usr/bin/env python3
"""Lockstep's tokenizer against tiktoken and Hugging Face tokenizers, in turn; see tokenizer.sh.

Encoding and `prepare` are compared by processor time, which other programs on the machine disturb
least, training and the time of `prepare` by the clock.
"""
import argparse
import datetime
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

import tiktoken
import tokenizers

from train_cpu import append, commit, machine

ENCODE_BYTES = 10_000_000
# tiktoken's patterns in its own dialect; ours are in data/pretokenizer_pattern.h.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"])
PATTERNS = {
    "GPT-2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "Llama 3": LLAMA3,
    "o200k": O200K,
}
# text, vocabulary, pattern
ENCODINGS = [("dictionary", 2048, "GPT-2"), ("dictionary", 8192, "GPT-2"),
             ("dictionary", 50257, "GPT-2"), ("dictionary", 50257, "Llama 3"),
             ("dictionary", 50257, "o200k"), ("scripts", 8192, "GPT-2"),
             ("scripts", 8192, "o200k")]
# First and last letter, and the letters of a word.
SCRIPTS = [(0xC0, 0xFF, 1, 9), (0x3B1, 0x3C9, 1, 9), (0x430, 0x44F, 1, 10), (0x5D0, 0x5EA, 1, 7),
           (0x620, 0x64A, 1, 7), (0x905, 0x939, 1, 6), (0xE01, 0xE30, 4, 30), (0x3042, 0x3093, 2, 12),
           (0x4E00, 0x56FF, 2, 12), (0xAC00, 0xB000, 1, 5)]


def text_of_scripts(size):
    """Sentences of made-up words of ten scripts, some words far more frequent than others."""
    numbers = random.Random(1)
    sentences = []
    while size > 0:
        first, last, shortest, longest = numbers.choice(SCRIPTS)
        words = random.Random(first)  # the same words whenever the script comes
        words = ["".join(chr(words.randint(first, last)) for _ in range(words.randint(shortest,
                                                                                      longest)))
                 for _ in range(2000)]
        for _ in range(50):
            count = numbers.randint(4, 20)
            chosen = [words[int(2000 ** numbers.random()) - 1] for _ in range(count)]
            sentences.append(" ".join(chosen) + numbers.choice([". ", "!\n", "? ", "\u3002", "\n\n"]))
            size -= len(sentences[-1].encode())
    return "".join(sentences).encode()


def byte_of_printed():
    """bytes_to_unicode of GPT-2, the other way."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): b for i, b in enumerate(others)}


# Run in a small process of its own: a program's peak memory counts that of the one it forks from.
MEASURE = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
code = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - begin
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
json.dump([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024], sys.stderr)
sys.exit(code)
"""


def run(command):
    """Standard output, seconds, processor seconds and peak MiB of a command."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, command)], capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed with exit code {done.returncode}")
    return done.stdout, *json.loads(done.stderr)


def prepare(args, text, output, *options):
    return run([args.build / "lockstep", "prepare", "--input", text, "--output", output,
                "--threads", args.threads, *options])


def ratio(pairs):
    ratios = sorted(b / a for a, b in pairs)
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def medians(pairs):
    return [statistics.median(side) for side in zip(*pairs)]


class Encoding:
    """One tokenizer on both sides: Lockstep's file of it, and tiktoken's object."""

    def __init__(self, folder, trained, pattern):
        content = json.loads((trained / "tokenizer.json").read_text())
        if pattern != "GPT-2":
            split = {"type": "Split", "pattern": {"Regex": PATTERNS[pattern]},
                     "behavior": "Isolated", "invert": False}
            bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": False}
            content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_only]}
        self.file = folder / f"{trained.name}-{pattern}.json"
        self.file.write_text(json.dumps(content))
        byte = byte_of_printed()
        ranks = {bytes(byte[c] for c in token): i for token, i in content["model"]["vocab"].items()
                 if token != "<|endoftext|>"}
        self.tiktoken = tiktoken.Encoding("bench", pat_str=PATTERNS[pattern], mergeable_ranks=ranks,
                                          special_tokens={"<|endoftext|>": 0})

    def check(self, args, path, text):
        ids = memoryview(run([args.build / "tokenizer_encode", self.file, path, "--ids"])[0])
        return ids.cast("i").tolist() == self.tiktoken.encode_ordinary(text)

    def pair(self, args, path, text):
        ours = json.loads(run([args.build / "tokenizer_encode", self.file, path])[0])["seconds"]
        begin = time.process_time()
        self.tiktoken.encode_ordinary(text)
        return ours, time.process_time() - begin


def encode_table(args, folder, texts, say):
    say("| encode, one thread | vocabulary | pattern | Lockstep, MB/s | tiktoken, MB/s | "
        "Lockstep / tiktoken (min-max) | same ids |")
    say("|---|---:|---|---:|---:|---|---|")
    trained = {}
    for name, vocabulary, pattern in ENCODINGS:
        path = texts[name]
        if (name, vocabulary) not in trained:
            trained[name, vocabulary] = folder / f"{name}-{vocabulary}"
            prepare(args, path, trained[name, vocabulary], "--vocab-size", vocabulary)
        encoding = Encoding(folder, trained[name, vocabulary], pattern)
        part = folder / "part.txt"
        text = path.read_bytes()[:ENCODE_BYTES].decode(errors="ignore")
        part.write_text(text)
        same = encoding.check(args, part, text)
        pairs = [encoding.pair(args, part, text) for _ in range(args.pairs)]
        ours, theirs = (part.stat().st_size / 1e6 / seconds for seconds in medians(pairs))
        say(f"| {name} | {vocabulary} | {pattern} | {ours:.1f} | {theirs:.1f} | {ratio(pairs)} | "
            f"{'yes' if same else 'NO'} |")


def hugging_face_trained(blocks, vocabulary):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    begin = time.perf_counter()
    tokenizer.train_from_iterator(blocks, trainer)
    seconds = time.perf_counter() - begin
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges], seconds


def train_table(args, folder, path, say):
    # Hugging Face trains on several texts at the same time: on blocks that end where words do.
    # A few bytes of the dictionary are not UTF-8, which it does not take.
    blocks, block = [], ""
    text = path.read_text(errors="ignore")
    path = folder / "clean.txt"
    path.write_text(text)
    for line in re.split(r"(?<=[!-~]\n)(?=[!-~])", text):
        block += line
        if len(block) > 1 << 16:
            blocks, block = [*blocks, block], ""
    blocks.append(block)
    say("")
    say("| train | vocabulary | Lockstep, s | tokenizers, s | tokenizers / Lockstep (min-max) | "
        "same merges |")
    say("|---|---:|---:|---:|---|---|")
    for vocabulary in (8192, 50257):
        pairs = []
        for _ in range(args.pairs):
            with tempfile.TemporaryDirectory(dir=folder) as output:
                seconds = prepare(args, path, pathlib.Path(output) / "data", "--vocab-size",
                                  vocabulary, "--validation-fraction", 0)[1]
                trained = json.loads((pathlib.Path(output) / "data/tokenizer.json").read_text())
            merges, theirs = hugging_face_trained(blocks, vocabulary)
            pairs.append((seconds, theirs))
        ours, theirs = medians(pairs)
        same = merges == trained["model"]["merges"]
        say(f"| {path.stat().st_size / 1e6:.0f} MB | {vocabulary} | {ours:.2f} | {theirs:.2f} | "
            f"{ratio(pairs)} | {'yes' if same else 'NO'} |")


def prepare_table(args, folder, path, say):
    """`prepare` against encoding alone: what part of its time is encoding."""
    tokenizer = folder / "dictionary-8192" / "tokenizer.json"
    size = path.stat().st_size / 1e6
    say("")
    say("| prepare | threads | prepare, MB/s | encoding on one thread, MB/s | share of threads x "
        "encoding (min-max) | share of processor time (min-max) | peak MiB |")
    say("|---|---:|---:|---:|---|---|---:|")
    for copies in (1, 5):
        text = folder / f"copies-{copies}.txt"
        text.write_bytes(path.read_bytes() * copies)
        rows = []
        for _ in range(args.pairs):
            out = run([args.build / "tokenizer_encode", tokenizer, text])[0]
            encode = json.loads(out)["seconds"]
            with tempfile.TemporaryDirectory(dir=folder) as output:
                rows.append((encode, *prepare(args, text, pathlib.Path(output) / "data",
                                              "--tokenizer", tokenizer)[1:]))
        encode, seconds, _, memory = medians(rows)
        clock = ratio([(row[1] * args.threads, row[0]) for row in rows])
        processor = ratio([(row[2], row[0]) for row in rows])
        say(f"| {copies * size:.0f} MB | {args.threads} | {copies * size / seconds:.1f} | "
            f"{copies * size / encode:.1f} | {clock} | {processor} | {memory:.0f} |")
        text.unlink()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=pathlib.Path, help="a file that gets the tables too")
    args = parser.parse_args()

    table = []

    def say(line):
        table.append(line)
        print(line, flush=True)

    say(f"{datetime.date.today()}, commit {commit()}, {machine()}. tiktoken "
        f"{tiktoken.__version__}, tokenizers {tokenizers.__version__}; medians of {args.pairs} "
        "pairs in turn.")
    say("")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        scripts = folder / "scripts.txt"
        scripts.write_bytes(text_of_scripts(ENCODE_BYTES))
        encode_table(args, folder, {"dictionary": args.text, "scripts": scripts}, say)
        train_table(args, folder, args.text, say)
        prepare_table(args, folder, args.text, say)
    append(table, args.output)


if __name__ == "__main__":
    main()
