#!/usr/bin/env python3
"""Loads an exported Hugging Face folder with `transformers` and compares its logits.

usage: check_export.py EXPORTED GOLDEN      (torch, transformers, numpy)

GOLDEN is one of the folders that make.py made; EXPORTED came from it by import and export.
"""
import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from make import expected_ids


def main():
    exported, golden = map(pathlib.Path, sys.argv[1:])
    model, log = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32,
                                                      output_loading_info=True)
    assert not any(log[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), log
    with torch.no_grad():
        logits = model.eval()(torch.tensor([expected_ids()])).logits[0].numpy()
    wanted = np.fromfile(golden / "logits.bin", dtype="<f4").reshape(logits.shape)
    assert np.array_equal(logits, wanted), np.abs(logits - wanted).max()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    text = "Hello, wörld!\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) == len(text.encode()), ids
    assert tokenizer.eos_token_id == model.config.eos_token_id == 256
    generated = model.generate(torch.tensor([expected_ids()[:4]]), max_new_tokens=3, do_sample=False)
    assert generated.shape[1] <= 7
    print(f"{exported}: {type(model).__name__}, logits equal bit for bit")


if __name__ == "__main__":
    main()
