"""Ten steps of torch.optim.AdamW and Adam in float64, for tests/kernels/adam_test.cpp.

Gradients and starting weights are numbers of fp32, so that both sides start from the same ones.
Each line of the files written beside this script is a name and its values:
  initial, then for each step learning_rate, gradients, weights; at the end exp_avg, exp_avg_sq.
Run with PyTorch >= 2.0: python3 make.py
"""

import pathlib

import torch

COUNT, STEPS = 19, 10
OPTIONS = dict(betas=(0.9, 0.95), eps=1e-8)


def line(name, values):
    return name + " " + " ".join(f"{v:.17g}" for v in values) + "\n"


def record(kind, weight_decay):
    generator = torch.Generator().manual_seed(1)

    def numbers():
        return torch.randn(COUNT, generator=generator, dtype=torch.float32).double()

    weights = torch.nn.Parameter(numbers())
    optimizer = kind([weights], lr=0.0, weight_decay=weight_decay, **OPTIONS)
    text = line("initial", weights.tolist())
    for step in range(STEPS):
        # Learning rate and size of the gradients change; one gradient is zero, one always so.
        rate = torch.tensor(0.01 * (step + 1) / STEPS, dtype=torch.float32).item()
        gradients = numbers() * 2.0 ** (step % 3 - 4)
        gradients[step] = gradients[18] = 0
        optimizer.param_groups[0]["lr"] = rate
        weights.grad = gradients
        optimizer.step()
        text += line("learning_rate", [rate]) + line("gradients", gradients.tolist())
        text += line("weights", weights.tolist())
    state = optimizer.state[weights]
    text += line("exp_avg", state["exp_avg"].tolist())
    text += line("exp_avg_sq", state["exp_avg_sq"].tolist())
    folder = pathlib.Path(__file__).parent
    (folder / f"{kind.__name__.lower()}.txt").write_text(text)


record(torch.optim.AdamW, 0.125)
record(torch.optim.Adam, 0.0625)
