"""What compare_steps.py and train.py share: a text that any machine can make, datasets, runs."""
import json
import pathlib
import random
import subprocess
import sys


def write_text(path, words, vocabulary, seed=1):
    """`words` words drawn from `vocabulary` made-up ones, the n-th with probability ~ 1/n, as in a language.

    A machine with a GPU need not have a corpus; only speed and agreement are measured on this.
    """
    draw = random.Random(seed)
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "ol")]
    known = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(vocabulary)]
    weights = [1 / (n + 1) for n in range(vocabulary)]
    with path.open("w") as file:
        for start in range(0, words, 10000):
            chosen = draw.choices(known, weights, k=min(10000, words - start))
            file.write(" ".join(chosen).replace(" ba ", " ba.\n") + ".\n")


def run(command, **options):
    """Runs a command; returns the finished process with its outputs as text."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)


def checked(command):
    """Standard output of a command that must succeed."""
    done = run(command)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def prepare(program, work, words, vocab_size):
    """A dataset of such a text; vocab_size 0: a token a byte."""
    work.mkdir(parents=True, exist_ok=True)
    dataset, text = work / f"data-{vocab_size}", work / f"text-{vocab_size}.txt"
    if not (dataset / "dataset.json").exists():
        write_text(text, words, vocabulary=max(2000, 2 * vocab_size))
        tokenizer = ["--vocab-size", vocab_size] if vocab_size else ["--tokenizer", "bytes"]
        checked([program, "prepare", "--input", text, "--output", dataset, *tokenizer])
    return dataset


def metrics(folder, key):
    """One figure of every step of a run."""
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[key] for line in lines]
