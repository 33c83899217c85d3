#!/usr/bin/env python3
"""Makes the golden data of this folder with PyTorch and Hugging Face transformers.

usage: make.py [FOLDER]            (needs torch and transformers; written with 2.15 and 5.23)

For each tiny model, NAME.json and NAME.bin:

  NAME.json   model      the configuration, in the fields of model/config.h
              tensors    name and shape of each parameter, in the order of the blob
              batch      tokens and targets of one batch ([sequence][token]; -1: not counted)
              loss       mean over the counted targets
              prompt     a sequence, whose logits are in the blob
              training   for "adamw" and "adam": the mean loss of each of 30 steps, before its
                         update, and the norm of the gradient before it is clipped; the
                         hyperparameters; and the sequences, of which a step takes the next few
  NAME.bin    little-endian, one behind the other:
              weights    bfloat16 (the model's weights are exactly these), all tensors
              gradients  float32, all tensors: of the mean loss
              logits     float32 (prompt tokens, vocabulary)

Everything is computed in float32 by the eager attention of the published models.
"""
import json
import math
import pathlib
import sys

import numpy as np
import torch
import transformers

VOCAB, CONTEXT, WIDTH = 97, 32, 48
STEPS, WARMUP, BATCH = 30, 5, 4
LEARNING_RATE, FLOOR = 1e-3, 0.1
BETAS, EPSILON, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.95), 1e-8, 0.1, 1.0


def gpt2():
    config = dict(family="gpt2", vocab_size=VOCAB, context_length=CONTEXT, num_layers=2,
                  hidden_size=WIDTH, num_heads=4, num_kv_heads=4, head_dim=12, ffn_size=4 * WIDTH,
                  activation="gelu_tanh", dropout=0, norm_epsilon=1e-5, tied_embeddings=True,
                  rope_theta=10000, rope_scaling=None)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=2, n_head=4,
        activation_function="gelu_new", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        layer_norm_epsilon=1e-5, attn_implementation="eager"))
    h = model.transformer
    names = {"embedding.tokens.weight": [h.wte.weight], "embedding.positions.weight": [h.wpe.weight]}
    for n, block in enumerate(h.h):
        for ours, theirs in {"attention_norm": block.ln_1, "attention.qkv": block.attn.c_attn,
                             "attention.output": block.attn.c_proj, "ffn_norm": block.ln_2,
                             "ffn.up": block.mlp.c_fc, "ffn.down": block.mlp.c_proj}.items():
            names[f"layers.{n}.{ours}.weight"] = [theirs.weight]
            names[f"layers.{n}.{ours}.bias"] = [theirs.bias]
    names["final_norm.weight"] = [h.ln_f.weight]
    names["final_norm.bias"] = [h.ln_f.bias]
    return config, model, names


def llama(layers, heads, kv_heads, ffn, tied, theta, scaling):
    config = dict(family="llama", vocab_size=VOCAB, context_length=CONTEXT, num_layers=layers,
                  hidden_size=WIDTH, num_heads=heads, num_kv_heads=kv_heads,
                  head_dim=WIDTH // heads, ffn_size=ffn, activation="silu", dropout=0,
                  norm_epsilon=1e-5, tied_embeddings=tied, rope_theta=theta, rope_scaling=scaling)
    rope = dict(rope_type="default", rope_theta=theta)
    if scaling:
        rope = dict(rope_type="llama3", rope_theta=theta, factor=scaling["factor"],
                    low_freq_factor=scaling["low_freq_factor"],
                    high_freq_factor=scaling["high_freq_factor"],
                    original_max_position_embeddings=scaling["original_context_length"])
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=WIDTH,
        intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        rope_parameters=rope, attn_implementation="eager"))
    m = model.model
    names = {"embedding.tokens.weight": [m.embed_tokens.weight]}
    for n, block in enumerate(m.layers):
        a, f = block.self_attn, block.mlp
        names[f"layers.{n}.attention_norm.weight"] = [block.input_layernorm.weight]
        names[f"layers.{n}.attention.qkv.weight"] = [a.q_proj.weight, a.k_proj.weight,
                                                     a.v_proj.weight]
        names[f"layers.{n}.attention.output.weight"] = [a.o_proj.weight]
        names[f"layers.{n}.ffn_norm.weight"] = [block.post_attention_layernorm.weight]
        names[f"layers.{n}.ffn.gate_up.weight"] = [f.gate_proj.weight, f.up_proj.weight]
        names[f"layers.{n}.ffn.down.weight"] = [f.down_proj.weight]
    names["final_norm.weight"] = [m.norm.weight]
    if not tied:
        names["classifier.weight"] = [model.lm_head.weight]
    return config, model, names


def randomize(names):
    """Weights that bfloat16 holds exactly, large enough that every gradient matters."""
    with torch.no_grad():
        for name, parts in names.items():
            for part in parts:
                value = torch.randn_like(part)
                if part.dim() == 2:
                    value *= 0.3 if name.startswith("embedding") else 0.15
                else:
                    value = value * 0.1 + (0 if name.endswith("bias") else 1)
                part.copy_(value.bfloat16().float())


def as_ours(config, name, parts):
    """One tensor of our table. GPT-2's linear layers (Conv1D) hold (inputs, outputs): transposed."""
    whole = torch.cat([part.detach() for part in parts])
    transposed = config["family"] == "gpt2" and name.startswith("layers.") and whole.dim() == 2
    return (whole.t() if transposed else whole).clone(memory_format=torch.contiguous_format)


def mean_loss(model, tokens, targets):
    logits = model(input_ids=tokens, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(),
                                             ignore_index=-1)


def sequences(count, generator):
    """Text-like: each token is a fixed function of the one before it, or sometimes a random one."""
    follow = torch.randperm(VOCAB, generator=generator)
    rows = torch.randint(VOCAB, (count, CONTEXT + 1), generator=generator)
    chance = torch.rand(rows.shape, generator=generator)
    for t in range(1, rows.shape[1]):
        rows[:, t] = torch.where(chance[:, t] < 0.8, follow[rows[:, t - 1]], rows[:, t])
    return rows


def learning_rate(step):
    if step < WARMUP:
        return LEARNING_RATE * (step + 1) / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return LEARNING_RATE * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(model, optimizer_class, rows):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = optimizer_class([dict(params=matrices, weight_decay=WEIGHT_DECAY),
                                 dict(params=vectors, weight_decay=0)],
                                lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    losses, norms = [], []
    for step in range(STEPS):
        batch = rows[step * BATCH % len(rows):][:BATCH]
        loss = mean_loss(model, batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        losses.append(loss.item())
    return dict(losses=losses, gradient_norms=norms)


def make(folder, name, config, model, names):
    generator = torch.Generator().manual_seed(1)
    randomize(names)
    weights = {ours: as_ours(config, ours, parts) for ours, parts in names.items()}

    tokens = torch.randint(VOCAB, (3, 21), generator=generator)  # shorter than the context
    targets = torch.randint(VOCAB, (3, 21), generator=generator)
    targets[0, 4] = targets[2, 20] = -1
    loss = mean_loss(model, tokens, targets)
    loss.backward()
    gradients = {ours: as_ours(config, ours, [part.grad for part in parts])
                 for ours, parts in names.items()}
    prompt = torch.randint(VOCAB, (1, 29), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=prompt).logits[0]

    initial = {key: value.clone() for key, value in model.state_dict().items()}
    rows = sequences(40, generator)
    training = {}
    for kind, optimizer in (("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)):
        model.load_state_dict(initial)
        training[kind] = train(model, optimizer, rows)
    training["hyperparameters"] = dict(
        steps=STEPS, batch_size=BATCH, learning_rate=LEARNING_RATE, schedule="cosine",
        warmup_steps=WARMUP, min_lr_ratio=FLOOR, beta1=BETAS[0], beta2=BETAS[1], epsilon=EPSILON,
        weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM,
        learning_rates=[learning_rate(step) for step in range(STEPS)])
    training["sequences"] = rows.tolist()

    index = dict(model=config,
                 tensors=[dict(name=key, shape=list(value.shape)) for key, value in weights.items()],
                 batch=dict(tokens=tokens.tolist(), targets=targets.tolist()),
                 loss=loss.item(), prompt=prompt[0].tolist(), training=training)
    (folder / f"{name}.json").write_text(json.dumps(index, separators=(",", ":")) + "\n")
    with open(folder / f"{name}.bin", "wb") as blob:
        for value in weights.values():
            bits = value.numpy().view(np.uint32)
            assert not (bits & 0xffff).any()
            (bits >> 16).astype("<u2").tofile(blob)
        for value in gradients.values():
            value.numpy().astype("<f4").tofile(blob)
        logits.numpy().astype("<f4").tofile(blob)
    first, last = (training["adamw"]["losses"][i] for i in (0, -1))
    print(f"{name}: loss {loss.item():.4f}; 30 steps of AdamW: {first:.4f} to {last:.4f}")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scaling = dict(factor=8.0, low_freq_factor=0.5, high_freq_factor=2.0,
                   original_context_length=24)
    make(folder, "gpt2", *gpt2())
    make(folder, "llama", *llama(2, 6, 2, 96, False, 10000.0, None))
    # One layer, tied, with all three ranges of wavelengths: turns 3.8, 1.2, 0.38 and 0.12.
    make(folder, "llama_tied", *llama(1, 6, 3, 128, True, 100.0, scaling))


if __name__ == "__main__":
    main()
