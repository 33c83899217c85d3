"""One peer of decode_peers.py: continues one token greedily, and prints tokens a second after it.

    decode_peer.py PEER MODEL TYPE TOKENS THREADS

MODEL: a Hugging Face folder, a CTranslate2 folder or a .gguf file. The time of the prompt and of
what happens once is in none of the figures: it is that of TOKENS tokens less that of one.
"""
import sys
import time

PROMPT = 65


def difference(generate, tokens):
    """Tokens a second of those after the first; generate(n) makes n."""
    generate(2)  # what happens once
    seconds = []
    for count in (1, tokens + 1):
        start = time.perf_counter()
        generate(count)
        seconds.append(time.perf_counter() - start)
    return tokens / (seconds[1] - seconds[0])


def transformers(model, dtype, tokens, threads):
    import torch
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    ids = torch.tensor([[PROMPT]])
    with torch.inference_mode():
        return difference(lambda n: model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=n,
            max_new_tokens=n, eos_token_id=None, pad_token_id=0), tokens)


def ctranslate2(model, dtype, tokens, threads):
    import ctranslate2 as library
    generator = library.Generator(model, compute_type=dtype, intra_threads=threads)
    return difference(lambda n: generator.generate_batch(
        [["A"]], min_length=n, max_length=n, include_prompt_in_result=False), tokens)


def llama_cpp(model, _, tokens, threads):
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 256
    params.n_parallel = 1
    params.warmup = False
    params.verbosity = -1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def generate(n):
        return server.handle_completions({
            "prompt": [PROMPT], "n_predict": n, "temperature": 0, "ignore_eos": True,
            "cache_prompt": False})
    generate(2)
    timings = generate(tokens)["timings"]
    assert timings["predicted_n"] == tokens, timings
    return timings["predicted_per_second"]


def main():
    peer, model, dtype, tokens, threads = sys.argv[1:]
    run = {"transformers": transformers, "CTranslate2": ctranslate2, "llama.cpp": llama_cpp}[peer]
    print(f"RATE {run(model, dtype, int(tokens), int(threads))}", flush=True)


if __name__ == "__main__":
    main()
