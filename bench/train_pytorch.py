#!/usr/bin/env python3
"""The training step of train_cpu.sh and gpu/run_all.sh as a PyTorch user would write it: prints seconds a step.

A GPT-2-style model (learned positions, layernorm, biases, tied output, gelu_tanh) with
scaled_dot_product_attention, gradient-norm clipping and fused AdamW, on random tokens. Prints one
JSON object: the median seconds a step after the warm-up, tokens a second, and the settings; with
--profile, on the CPU, also the share of the steps' time that is in matrix products, those of
attention not counted.
"""
import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).split(c, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.ffn_norm(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, vocabulary, context, layers, width, heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def product_share(profiler, seconds):
    products = {"aten::mm", "aten::addmm", "aten::bmm"}
    spent = sum(event.self_cpu_time_total for event in profiler.key_averages()
                if event.key in products)
    return spent * 1e-6 / seconds


def main():
    parser = argparse.ArgumentParser()
    for name, default in dict(layers=4, hidden_size=256, heads=4, vocab_size=2048,
                              context_length=128, batch_size=8, threads=2, steps=20,
                              warmup=5).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if args.profile and args.device != "cpu":
        parser.error("--profile is for --device cpu")

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = Gpt2(args.vocab_size, args.context_length, args.layers, args.hidden_size, args.heads)
    model.to(args.device)
    run = torch.compile(model) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95),
                                  weight_decay=0.1, fused=True)
    stream = torch.randint(args.vocab_size, (64, args.batch_size, args.context_length + 1))
    stream = stream.to(args.device)
    seconds = []
    profiler = profile(activities=[ProfilerActivity.CPU])
    for step in range(args.warmup + args.steps):
        if args.profile and step == args.warmup:
            profiler.start()
        batch = stream[step % len(stream)]
        begin = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = run(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[args.warmup:])
    share = {}
    if args.profile:
        profiler.stop()
        share["product_share"] = product_share(profiler, sum(seconds[args.warmup:]))
    print(json.dumps(share | {
        "step_seconds": median,
        "tokens_per_second": args.batch_size * args.context_length / median,
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
