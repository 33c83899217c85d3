#!/usr/bin/env python3
"""Whole training steps on the GPU against the CPU's, and against themselves; see run_all.sh.

  1. The same run with --device cpu and --device cuda: losses and gradient norms, step by step, within the
     tolerance below.
  2. The run on the GPU twice, without CUDA graphs, by two workers that share it, and by a GPU each where
     there are two: every bit of the checkpoints must be the same.

Exit code 1 when any of it fails.
"""
import argparse
import json
import pathlib
import shutil
import sys

from common import checked, metrics, prepare, run

SIZES = {
    # name: layers, width, heads, key-value heads, context, sequences, vocabulary (0: bytes), words
    "tiny": (2, 32, 2, 1, 32, 4, 0, 2000),
    "small": (4, 256, 4, 2, 256, 8, 2048, 400000),
}
STEPS = 10

# u, the rounding of the operands' type. Both devices round each operand and result once, to the nearest, and sum in
# fp32 in another order; now and then that moves a stored value by one u, and often that of a GELU which a GPU fuses
# with a product, before it rounds. A token's loss then differs by a share of u, and the mean over a hundred tokens or
# more by a tenth of that, because such errors have either sign; a gradient norm, in which they do not all cancel, by
# more. Each step starts from weights that the last ones moved apart, hence half as much again a step. Never below
# what two fp32 exponentials differ by. On the emulated device losses differed by u/160 in bf16 and fp16 and norms by
# u/10: a tenth and a fifth of what is allowed. In fp32 a beta2 that is wrong by one in the second digit is too far.
ROUNDING = {"fp32": 2**-24, "bf16": 2**-9, "fp16": 2**-12}


def tolerances(precision, step):
    """Relative, of the loss and of the gradient norm."""
    growth = 1 + step / 2
    return (max(1e-6, ROUNDING[precision] / 16) * growth, max(1e-5, ROUNDING[precision] / 2) * growth)


def train(args, dataset, name, family, options, workers=1):
    layers, width, heads, kv_heads, context, sequences, _, _ = SIZES[args.size]
    folder = args.work / name
    shutil.rmtree(folder, ignore_errors=True)
    command = ["mpirun", "-np", workers] if workers > 1 else []
    command += [args.program, "train", "--data", dataset, "--run", folder, "--family", family, "--layers", layers,
                "--hidden-size", width, "--heads", heads, "--context-length", context, "--batch-size", sequences,
                "--virtual-workers", 2, "--steps", STEPS, "--warmup-steps", 2, "--learning-rate", 1e-3,
                "--precision", args.precision, "--log-every", STEPS, "--evaluate-every", 0]
    command += ["--kv-heads", kv_heads] if family == "llama" else []
    checked([*command, *options])
    return folder


def compare_with_cpu(args, family, cpu, cuda):
    """Prints the losses of both, step by step; whether all are close enough."""
    good = True
    print(f"\n{family}, {args.precision}\n")
    print("| step | loss, CPU | loss, GPU | relative | allowed | norm, CPU | norm, GPU | relative | allowed |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows = zip(*[metrics(folder, key) for key in ("loss", "grad_norm") for folder in (cpu, cuda)])
    for step, (a, b, norm_a, norm_b) in enumerate(rows):
        cells = []
        for x, y, allowed in zip((a, norm_a), (b, norm_b), tolerances(args.precision, step)):
            if x is None or y is None:  # an overflow in fp16, which both must have
                good = good and x == y
                cells.append(f"{x} | {y} | | ")
                continue
            difference = abs(x - y) / abs(x)
            good = good and difference <= allowed
            mark = "" if difference <= allowed else " TOO FAR"
            cells.append(f"{x:.6f} | {y:.6f} | {difference:.1e}{mark} | {allowed:.1e}")
        print(f"| {step + 1} | {' | '.join(cells)} |")
    return good


def same_bits(args, a, b, what):
    done = run([args.program, "checkpoint", "diff", a, b])
    print(f"{what}: {'the same bits' if done.returncode == 0 else 'DIFFERENT: ' + done.stdout + done.stderr}")
    return done.returncode == 0


def num_gpus(args):
    report = json.loads(run([args.program, "doctor", "--json"]).stdout)
    return len(report["workers"][0]["cuda"]["gpus"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--precision", choices=ROUNDING, default="fp32")
    parser.add_argument("--size", choices=SIZES, default="small")
    args = parser.parse_args()
    *_, vocabulary, words = SIZES[args.size]
    dataset = prepare(args.program, args.work, words, vocabulary)

    good, gpus = True, num_gpus(args)
    for family in ("gpt2", "llama"):
        def on_gpu(name, *options, workers=1):
            return train(args, dataset, f"{family}-{name}", family, ["--device", "cuda", *options], workers)

        cpu = train(args, dataset, f"{family}-cpu", family, ["--device", "cpu"])
        cuda = on_gpu("cuda")
        good &= compare_with_cpu(args, family, cpu, cuda)
        print()
        good &= same_bits(args, cuda, on_gpu("again"), "a second run")
        good &= same_bits(args, cuda, on_gpu("eager", "--no-cuda-graph"), "without a CUDA graph")
        good &= same_bits(args, cuda, on_gpu("shared", "--share-gpu", workers=2), "two workers on one GPU")
        if gpus > 1:
            good &= same_bits(args, cuda, on_gpu("two", workers=2), "two workers, a GPU each")
    print("\nall agree" if good else "\nNOT ALL AGREE")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
