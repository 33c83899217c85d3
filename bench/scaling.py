#!/usr/bin/env python3
"""How the cost of a training step grows; see scaling.sh.

One dimension of a small GPT-2 varies while the rest stays, and so do the tokens of a step. Each
round trains every shape once, as a whole process; a figure is the median of the rounds. Of workers,
more than the machine has cores for, only the share of communication says something; it is taken
from `--profile`.
"""
import argparse
import datetime
import json
import os
import pathlib
import re
import statistics
import tempfile

from train_cpu import commit, lockstep, machine, prepare
from workers import train

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCABULARY = 4096
TOKENS = 4096  # a step, in every shape
STEPS, WARMUP = 2, 1
WORKERS = (1, 2, 4, 8)
INK, PAGE, RATE = "#1f2328", "#ffffff", "#3b78c2"


def shape(layers=4, width=256, context=256, micro_batch=None):
    """As in train_cpu.MODELS, with the sequences of a micro-batch; heads have 64 channels."""
    batch = TOKENS // context
    return (layers, width, width // 64, VOCABULARY, batch, context, STEPS, WARMUP,
            micro_batch or batch)


DIMENSIONS = {
    # name: label, what stays, {value: shape}
    "context": ("context length, tokens", "4 layers, width 256, one micro-batch a step",
                {n: shape(context=n) for n in (128, 256, 512, 1024, 2048, 4096)}),
    "micro_batch": ("micro-batch, sequences", "4 layers, width 256, context 128",
                    {n: shape(context=128, micro_batch=n) for n in (1, 2, 4, 8, 16, 32)}),
    "width": ("width, channels", "4 layers, context 256, one micro-batch a step",
              {n: shape(width=n) for n in (128, 256, 512, 1024)}),
    "layers": ("layers", "width 256, context 256, one micro-batch a step",
               {n: shape(layers=n) for n in (1, 2, 4, 8, 16)}),
}
COLUMNS = ("tokens/s", "GFLOP/s", "peak memory, MiB")
WORKER_COLUMNS = ("exposed, % of step", "hidden, % of step")


def flops_per_token(layers, width, context):
    """As model/config.h counts: 6 a weight of matrices, and causal attention."""
    return 6 * (12 * layers * width**2 + VOCABULARY * width) + 6 * layers * width * context


def cost(args, dataset, sizes):
    layers, width, _, _, _, context, _, _, _ = sizes
    seconds, memory = lockstep(args, dataset, sizes[:8], micro_batch=sizes[8])
    rate = TOKENS / seconds
    return rate, rate * flops_per_token(layers, width, context) / 1e9, memory


def communication(args, dataset, workers):
    """Shares of a step, mean over workers, in %: what the thread that computes spends in collective
    operations and waits, and what the thread beside it does."""
    layers, width, heads, vocabulary, _, context, _, _, _ = shape()
    with tempfile.TemporaryDirectory() as folder:
        trace = pathlib.Path(folder) / "trace.json"
        # A step more than are profiled: the last one also evaluates and saves.
        sizes = (layers, width, heads, vocabulary, max(WORKERS), context, 5, 2)
        train(args.program, dataset, sizes, workers, 1, args.precision,
              ("--virtual-workers", max(WORKERS), "--profile", trace, "--profile-steps", 4))
        events = json.loads(trace.read_text())["traceEvents"]
    step, exposed, beside = 0, 0, 0
    for event in events:
        # An operation's wait for the others is within it.
        moves = event.get("cat") == "collective" or event["name"] == "wait_for_reduction"
        if event["name"].startswith("step "):
            step += event["dur"]
        elif moves and event["tid"] == 0:
            exposed += event["dur"]
        elif moves or event["name"] == "ordered_sum":
            beside += event["dur"]
    return 100 * exposed / step, 100 * beside / step


def table(label, columns, rows, digits):
    lines = [f"| {' | '.join((label, *columns))} |", "|" + "---:|" * (len(columns) + 1)]
    for value, figures in rows.items():
        cells = [f"{figure:.{n}f}" for figure, n in zip(figures, digits)]
        lines.append(f"| {' | '.join((str(value), *cells))} |")
    return "\n".join(lines) + "\n"


def into_page(name, text):
    """Replaces what stands between a name's two comments in docs/performance.md."""
    page = ROOT / "docs/performance.md"
    begin, end = f"<!-- scaling: {name} -->\n", "<!-- end -->"
    new, count = re.subn(f"(?s){begin}.*?{end}", lambda _: f"{begin}{text}{end}", page.read_text())
    assert count == 1, f"{page} has no place for {name}"
    page.write_text(new)


def plot(name, label, columns, rows):
    # Not before all is measured: a child's peak memory is at least its parent's.
    import matplotlib
    matplotlib.use("svg")
    from matplotlib import pyplot
    pyplot.rcParams.update({
        "svg.hashsalt": "lockstep", "svg.fonttype": "none",
        "font.sans-serif": ["DejaVu Sans", "sans-serif"], "font.size": 9, "text.color": INK,
        "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = pyplot.subplots(1, len(columns), figsize=(3.1 * len(columns), 2.4))
    for panel, column, figures in zip(panels, columns, zip(*rows.values())):
        panel.plot(list(rows), figures, marker="o", markersize=4, color=RATE)
        if name != "layers":  # over which cost is a straight line
            panel.set_xscale("log", base=2)
        panel.set_xticks(list(rows), map(str, rows))
        panel.minorticks_off()
        panel.set_ylim(0, 1.1 * max(figures) or 1)
        panel.set_xlabel(label)
        panel.set_ylabel(column)
        panel.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    figure.tight_layout()
    path = ROOT / f"docs/scaling_{name}.svg"
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(path, transparent=True, metadata=metadata | {"Title": f"Cost over {label}"})
    # A page's colours are the reader's choice.
    style = ("<style>svg { color: %s; background: %s } @media (prefers-color-scheme: dark) "
             "{ svg { color: #e6edf3; background: #0d1117 } }</style>\n" % (INK, PAGE))
    svg = path.read_text().replace(INK, "currentColor").replace(" <defs>", f" {style} <defs>", 1)
    path.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.M))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--note", default="", help="what the machine did besides, for the heading")
    args = parser.parse_args()

    dataset = prepare(args, VOCABULARY)
    measured = {}
    for turn in range(args.rounds):
        for sizes in {sizes for _, _, shapes in DIMENSIONS.values() for sizes in shapes.values()}:
            measured.setdefault(sizes, []).append(cost(args, dataset, sizes))
        for workers in WORKERS:
            measured.setdefault(workers, []).append(communication(args, dataset, workers))
        print(f"round {turn + 1} of {args.rounds} done", flush=True)

    def rows_of(keys):
        return {value: tuple(map(statistics.median, zip(*measured[key])))
                for value, key in keys.items()}

    heading = (f"{datetime.date.today()}, commit {commit()}, {machine()}. {args.precision}, "
               f"{args.threads} threads, {TOKENS} tokens a step, vocabulary {VOCABULARY}, heads of "
               f"64 channels; medians over rounds in turn: {args.rounds}. {args.note}")
    heading = heading.strip() + "\n"
    into_page("measured", heading)
    results = ["# How cost grows\n",
               "Written by bench/scaling.sh; docs/performance.md says what it means.\n", heading]
    for name, (label, rest, shapes) in DIMENSIONS.items():
        rows = rows_of(shapes)
        text = table(label, COLUMNS, rows, (0, 1, 0))
        results += [f"## {label}\n\n{rest}.\n", text]
        into_page(name, text)
        plot(name, label, COLUMNS, rows)
    rows = rows_of({workers: workers for workers in WORKERS})
    text = table("workers", WORKER_COLUMNS, rows, (1, 1))
    results += [f"## workers\n\n4 layers, width 256, {max(WORKERS)} sequences of 256 tokens a step "
                "in micro-batches of one, a thread a worker.\n", text]
    into_page("workers", text)
    plot("workers", "workers", WORKER_COLUMNS, rows)
    (ROOT / "bench/results/scaling.md").write_text("\n".join(results))
    print("\n".join(results))


if __name__ == "__main__":
    main()
