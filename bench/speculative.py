#!/usr/bin/env python3
"""Generation with a draft against generation without; see speculative.sh.

What a draft brings depends on how often the model agrees with it, so both are trained, on the same
text: a model of 8 layers of 512 and a draft of 2 layers of 128. Each pair continues one prompt with
and without a draft, one after the other, as whole processes. Throughput is by the program's own
clock: tokens, over the time after the prompt. Greedy texts must be the same.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from train_cpu import machine, prepare

VOCABULARY = 4096
SHAPES = {  # layers, width, heads, learning rate
    "model": (8, 512, 8, 1.5e-3),
    "draft": (2, 128, 4, 4e-3),
}
ENTRY = "Cat, n. [AS. cat; akin to D. kat.] (Zool.) A small domestic animal.\n   [1913 Webster]\n"
PROMPTS = {
    "an entry": "Dictionary, n. ",
    "what repeats itself": ENTRY + 4 * "red, green, blue, yellow, black and white; " + ENTRY + "red,",
}
CHOICES = {
    "greedy": ["--greedy"],
    "temperature 0.7": ["--temperature", 0.7],
}


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stderr[-2000:]}{command[1]} failed with exit code {done.returncode}")
    return done.stdout


def checkpoint(args, name):
    folder = args.work / f"speculative-{name}"
    # What is there goes on, or is done.
    layers, width, heads, rate = SHAPES[name]
    run([args.program, "train", "--data", prepare(args, VOCABULARY), "--run", folder,
         "--layers", layers, "--hidden-size", width, "--heads", heads, "--context-length", 512,
         "--batch-size", 4, "--steps", args.steps, "--warmup-steps", 50, "--learning-rate", rate,
         "--evaluate-every", 0, "--precision", "fp32"])
    return folder


def generate(args, model, prompt, choice, draft):
    command = [args.program, "generate", "--checkpoint", model, "--json", "--precision",
               args.precision, "--max-tokens", args.tokens, "--forbid", "<|endoftext|>",
               "--prompt", prompt, *choice]
    command += ["--draft", draft] if draft else []
    command += ["--threads", args.threads] if args.threads else []
    return json.loads(run(command))


def row(args, model, prompt, choice, draft):
    pairs, accepted, proposed, passes = [], 0, 0, 0
    for _ in range(args.pairs):
        with_draft = generate(args, model, PROMPTS[prompt], CHOICES[choice], draft)
        without = generate(args, model, PROMPTS[prompt], CHOICES[choice], None)
        if choice == "greedy":
            assert with_draft["tokens"] == without["tokens"], "a draft changed a greedy text"
        pairs.append((with_draft["tokens_per_second"], without["tokens_per_second"]))
        accepted += with_draft["draft"]["accepted"]
        proposed += with_draft["draft"]["proposed"]
        passes += args.tokens - 1 - with_draft["draft"]["accepted"]
    a, b = (statistics.median(side) for side in zip(*pairs))
    ratios = sorted(x / y for x, y in pairs)
    share = 100 * accepted / proposed if proposed else 0
    return (f"{share:.0f} % of {proposed // args.pairs} | "
            f"{args.pairs * (args.tokens - 1) / passes:.2f} | {a:.1f} | {b:.1f} | "
            f"{statistics.median(ratios):.2f} | {ratios[0]:.2f}-{ratios[-1]:.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int, default=600, help="of training, of 2048 tokens each")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    draft, model = checkpoint(args, "draft"), checkpoint(args, "model")

    print(f"{machine()}; {args.precision}, {args.pairs} pairs, {args.tokens} tokens, median tokens "
          "a second\n")
    print("| prompt | choice | draft | accepted | tokens a pass | with | without | ratio | min-max |"
          "\n|---|---|---|---|---|---|---|---|---|")
    for prompt in PROMPTS:
        for choice in CHOICES:
            for name, source in (("2 x 128", draft), ("prompt-lookup", "prompt-lookup")):
                print(f"| {prompt} | {choice} | {name} | "
                      f"{row(args, model, prompt, choice, source)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
