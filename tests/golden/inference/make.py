#!/usr/bin/env python3
"""Makes the golden data of this folder with PyTorch and Hugging Face transformers.

usage: make.py [FOLDER]            (needs torch and transformers; written with 2.15 and 5.23)

For each tiny model over bytes (id = byte, end-of-text 256; GPT-2 has three ids more, as padded
vocabularies do), NAME.json and NAME.bin, as tests/golden/model/make.py has them, with

  NAME.json   model, tensors   as there
              prompt           text
              greedy           the ids that generate() adds to it, up to the full context and one
                               more; the model's best and second-best logit differ by over 0.001
              text, nats       a text, and the sum in float64 of the losses of its bytes and the
                               end-of-text after them, all but the first, in windows of the
                               context and in windows of 20 tokens
  NAME.bin    weights          bfloat16
              logits           float32 (2, vocabulary): after the prompt, and after all tokens but
                               the last

sampling.json: a list of cases: logits, temperature, top_k, top_p, and the ids that Hugging Face's
processors leave over, with their probabilities.
"""
import importlib.util
import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from transformers.generation import logits_process

HERE = pathlib.Path(__file__).parent
specification = importlib.util.spec_from_file_location("models", HERE.parent / "model" / "make.py")
models = importlib.util.module_from_spec(specification)
specification.loader.exec_module(models)

PROMPT = "In the beginning"
CONTEXT = 48
END_OF_TEXT = 256
TEXT = ("It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
        "age of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was "
        "the season of Light, it was the season of Darkness.\n")


def greedy(model, prompt, usable):
    """The definition: one whole forward pass a token. generate() must say the same."""
    ids, margin = list(prompt), float("inf")
    while len(ids) <= CONTEXT:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, :usable]
        best = torch.topk(logits, 2).values
        margin = min(margin, (best[0] - best[1]).item())
        ids.append(logits.argmax().item())
    assert margin > 1e-3, margin
    assert END_OF_TEXT not in ids
    # One fewer: generate() refuses to leave the context by the token that nothing follows.
    suppressed = list(range(usable, model.config.vocab_size)) or None
    theirs = model.generate(torch.tensor([prompt]), do_sample=False, pad_token_id=0,
                            eos_token_id=None, suppress_tokens=suppressed, max_length=CONTEXT)
    assert theirs[0].tolist() == ids[:CONTEXT]
    return ids[len(prompt):]


def nats(model, window):
    ids = torch.tensor([list(TEXT.encode()) + [END_OF_TEXT]])
    model = model.double()
    total = 0.0
    for begin in range(0, ids.shape[1] - 1, window):
        part = ids[:, begin:begin + window + 1]
        logits = model(input_ids=part[:, :-1], use_cache=False).logits[0]
        total += torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum").item()
    return total


def make_model(folder, name, seed, config, model, names):
    torch.manual_seed(seed)
    models.randomize(names)
    weights = {ours: models.as_ours(config, ours, parts) for ours, parts in names.items()}
    prompt = list(PROMPT.encode())
    with torch.no_grad():
        added = greedy(model, prompt, END_OF_TEXT + 1)
        ids = torch.tensor([prompt + added[:-1]])
        logits = model(input_ids=ids, use_cache=False).logits[0]
        sums = {str(window): nats(model, window) for window in (CONTEXT, 20)}
    index = dict(model=config,
                 tensors=[dict(name=key, shape=list(value.shape)) for key, value in weights.items()],
                 prompt=PROMPT, greedy=added, text=TEXT, nats=sums)
    (folder / f"{name}.json").write_text(json.dumps(index, separators=(",", ":")) + "\n")
    with open(folder / f"{name}.bin", "wb") as blob:
        for value in weights.values():
            (value.numpy().view(np.uint32) >> 16).astype("<u2").tofile(blob)
        logits[[len(prompt) - 1, -1]].numpy().astype("<f4").tofile(blob)
    print(f"{name}: {bytes(added)!r}")


def sampling_case(logits, temperature, top_k, top_p):
    scores = torch.tensor([logits], dtype=torch.float32)
    processors = transformers.LogitsProcessorList()
    if temperature != 1:
        processors.append(logits_process.TemperatureLogitsWarper(float(temperature)))
    if top_k > 0:
        processors.append(logits_process.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(logits_process.TopPLogitsWarper(top_p))
    if top_p < 1:
        before = processors.__class__(processors[:-1])(None, scores.clone())
        ordered = torch.softmax(before.double(), -1).sort().values.cumsum(-1)
        assert (ordered - (1 - top_p)).abs().min() > 1e-5, "too close to the border for float32"
    left = processors(None, scores.clone())[0]
    probabilities = torch.softmax(left.double(), -1)
    ids = torch.nonzero(left > -float("inf")).flatten()
    return dict(logits=logits, temperature=temperature, top_k=top_k, top_p=top_p,
                ids=ids.tolist(), probabilities=probabilities[ids].tolist())


def make_sampling(folder):
    generator = torch.Generator().manual_seed(3)
    rows = [[0.5, -1.25, 3.0, 2.75, 2.5, -4.0, 0.0, 1.0],
            [1.0, 2.0, 2.0, 2.0, 0.0, -1.0],  # ties at the border of top-k
            [7.0],
            [80.0, -80.0, 79.0, 0.0],
            [round(x, 3) for x in (torch.randn(40, generator=generator) * 3).tolist()]]
    settings = [(1, 0, 1), (0.7, 0, 1), (1.5, 0, 1), (1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 100, 1),
                (1, 0, 0.9), (1, 0, 0.5), (1, 0, 0.01), (0.6, 5, 0.8), (2, 3, 0.6), (1, 2, 0.95)]
    tied = [(1, 0, 1), (0.7, 0, 1), (1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 4, 1), (2, 5, 1)]
    cases = [sampling_case(row, *setting) for i, row in enumerate(rows)
             for setting in (tied if i == 1 else settings)]
    (folder / "sampling.json").write_text(
        "[" + ",\n ".join(json.dumps(case, separators=(",", ":")) for case in cases) + "]\n")
    print(f"sampling: {len(cases)} cases")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE)
    torch.set_num_threads(1)
    models.CONTEXT, models.WIDTH = CONTEXT, 48
    models.VOCAB = 260
    make_model(folder, "gpt2", 1, *models.gpt2())
    models.VOCAB = 257
    make_model(folder, "llama", 2, *models.llama(2, 6, 2, 96, False, 10000.0, None))
    make_sampling(folder)


if __name__ == "__main__":
    main()
