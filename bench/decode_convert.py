"""Converts the Llama of decode_peers.py for its peers.

    decode_convert.py HF_FOLDER OUTPUT

Writes OUTPUT/ct2-{float32,int8} and OUTPUT/{F32,BF16,Q8_0,Q4_0}.gguf. The matrices of layers have
the type; the table of tokens has it in CTranslate2's, and is F32 in the .gguf files.
"""
import json
import pathlib
import sys

import ctranslate2
import gguf
import numpy as np
from safetensors.numpy import load_file

LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    parts = name.split(".")
    if parts[1] == "embed_tokens":
        return "token_embd.weight"
    if parts[1] == "norm":
        return "output_norm.weight"
    return f"blk.{parts[2]}.{LAYER_NAMES['.'.join(parts[3:-1])]}.weight"


def write_gguf(path, config, tokens, weights, dtype):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges([f"{tokens[65]} {tokens[66]}"])  # some reader wants one
    writer.add_eos_token_id(len(tokens) - 1)
    for name, values in weights.items():
        kind = gguf.GGMLQuantizationType.F32
        if values.ndim == 2 and "layers" in name:
            kind = dtype
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values.astype(np.float32), kind),
                          raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    source, output = (pathlib.Path(word) for word in sys.argv[1:])
    config = json.loads((source / "config.json").read_text())
    vocabulary = json.loads((source / "tokenizer.json").read_text())
    ids = dict(vocabulary["model"]["vocab"])
    ids.update((added["content"], added["id"]) for added in vocabulary["added_tokens"])
    tokens = sorted(ids, key=ids.get)
    weights = load_file(source / "model.safetensors")
    for kind in ("F32", "BF16", "Q8_0", "Q4_0"):
        write_gguf(output / f"{kind}.gguf", config, tokens, weights,
                   gguf.GGMLQuantizationType[kind])
    for kind in ("float32", "int8"):
        folder = output / f"ct2-{kind}"
        ctranslate2.converters.TransformersConverter(str(source)).convert(str(folder),
                                                                          quantization=kind)
        file = folder / "config.json"  # it wants names of tokens that this tokenizer has not
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), tokens[-1])
        file.write_text(json.dumps(json.loads(file.read_text()) | names))


if __name__ == "__main__":
    main()
