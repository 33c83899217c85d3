#!/usr/bin/env python3
"""Makes tiny Hugging Face folders and what `transformers` computes with them.

usage: make.py FOLDER      (torch, transformers, tokenizers, safetensors, numpy)

    gpt2          names as GPT2LMHeadModel saves them, fp32, tied
    gpt2_bare     names without `transformer.`, bf16, stored masks, another ffn size and activation
    llama         grouped queries, head_dim that is not hidden_size / heads, stretched RoPE in
                  `rope_parameters`, untied, fp16, in shards
    llama_tied    RoPE in the older `rope_theta` and `rope_scaling`, tied with lm_head stored

Beside each: logits.bin, fp32 (12 tokens, 260 ids), computed in fp32 for the ids 3, 10, 17, ... of
expected_ids() below.
"""
import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCAB, TOKENS = 260, 12


def expected_ids():
    return [(3 + 7 * i) % VOCAB for i in range(TOKENS)]


def tokenizer_json():
    """One token a byte and <|endoftext|>: 257 ids, fewer than the models have rows."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=True)


def randomized(model):
    """Every parameter takes part: gains away from 1, biases away from 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return model


def rounded(model, dtype):
    return model.to(dtype).to(torch.float32)


def edit_json(path, **fields):
    config = json.loads(path.read_text())
    for key, value in fields.items():
        config.pop(key, None) if value is ... else config.update({key: value})
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_expected(kind, folder):
    """With what `transformers` loads from the folder, so that the folder itself is checked too."""
    model, log = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not log["missing_keys"] and not log["mismatched_keys"], log
    with torch.no_grad():
        logits = model.eval()(torch.tensor([expected_ids()])).logits[0]
    (folder / "logits.bin").write_bytes(logits.numpy().astype("<f4").tobytes())
    (folder / "generation_config.json").unlink(missing_ok=True)


def gpt2(folder):
    config = GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=2, n_head=2,
                        bos_token_id=256, eos_token_id=256)
    model = randomized(GPT2LMHeadModel(config))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    write_expected(GPT2LMHeadModel, folder)


def gpt2_bare(folder):
    config = GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=2, n_head=4, n_inner=24,
                        activation_function="relu", bos_token_id=256, eos_token_id=256)
    model = rounded(randomized(GPT2LMHeadModel(config)), torch.bfloat16)
    model.to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    mask = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
    tensors |= {f"h.{i}.attn.bias": mask.clone() for i in range(2)}
    tensors |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    save_file(tensors, folder / "model.safetensors")
    edit_json(folder / "config.json", architectures=...)
    write_expected(GPT2LMHeadModel, folder)


def llama(folder):
    rope = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                high_freq_factor=4.0, original_max_position_embeddings=16)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=24,
                         num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         head_dim=6, max_position_embeddings=32, rope_parameters=rope,
                         bos_token_id=256, eos_token_id=256)
    model = rounded(randomized(LlamaForCausalLM(config)), torch.float16)
    model.to(torch.float16).save_pretrained(folder, max_shard_size="12KB")
    assert (folder / "model.safetensors.index.json").exists()
    write_expected(LlamaForCausalLM, folder)


def llama_tied(folder):
    rope = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0,
                high_freq_factor=3.0, original_max_position_embeddings=12)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=20,
                         num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                         max_position_embeddings=32, rope_parameters=rope, hidden_act="gelu",
                         tie_word_embeddings=True, bos_token_id=256, eos_token_id=256)
    model = randomized(LlamaForCausalLM(config))
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    theta = rope.pop("rope_theta")
    edit_json(folder / "config.json", rope_parameters=..., rope_theta=theta, rope_scaling=rope,
              head_dim=..., dtype=...)
    write_expected(LlamaForCausalLM, folder)


def main():
    out = pathlib.Path(sys.argv[1])
    for make in (gpt2, gpt2_bare, llama, llama_tied):
        folder = out / make.__name__
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        make(folder)


if __name__ == "__main__":
    main()
