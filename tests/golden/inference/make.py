#!/usr/bin/env python3
"""Makes the golden data of this folder with PyTorch and Hugging Face transformers.

usage: make.py [FOLDER]            (needs torch and transformers; written with 2.15 and 5.24)

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

sampling.json: a list of cases: logits, the options of a random choice, and the ids that Hugging
Face's processors leave over, with their probabilities.

decoding.json, of each of the models above:
  filters    cases: the options, named as SamplingOptions has them; prompt and tokens, the ids given
             and those generated so far; and the ids that are left to choose, with their
             probabilities. From generate(), so the order is Hugging Face's own. Logits that are
             wrong by 0.0002 leave the same ids.
  greedy     cases: options, and the 20 ids that generate() adds to the prompt; the best score and
             the second best differ by over 0.001
  strided    the sum of the losses of TEXT by context and stride, "48/10", in float64: of each window
             but the first only the last `stride` tokens count
  scores     contexts, what follows them, the sum in float64 of the logarithms of its bytes'
             probabilities, and whether each is the likeliest, as lm-eval's loglikelihood has them:
             of a text beyond the model's context the beginning is left out
  logprobs   of the first greedy tokens: the logarithm of the probability of the token, and the
             five likeliest with theirs
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


def strided_nats(model, window, stride):
    ids = torch.tensor([list(TEXT.encode()) + [END_OF_TEXT]])
    model = model.double()
    total, end = 0.0, 0
    for begin in range(0, ids.shape[1] - 1, stride):
        part = ids[:, begin:begin + window + 1]
        logits = model(input_ids=part[:, :-1], use_cache=False).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="none")
        total += losses[max(0, end - begin):].sum().item()
        end = begin + part.shape[1] - 1
        if end == ids.shape[1] - 1:
            break
    model.float()
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
    model = model.float()
    return model, added


class PresenceAndFrequency(transformers.LogitsProcessor):
    """Penalties as OpenAI's API reference has them, of what was generated. Hugging Face has none;
    generate() runs it where it runs processors of its caller."""

    def __init__(self, prompt_size, presence, frequency):
        self.prompt_size, self.presence, self.frequency = prompt_size, presence, frequency

    def __call__(self, input_ids, scores):
        generated = input_ids[0, self.prompt_size:]
        count = torch.bincount(generated, minlength=scores.shape[1])
        return scores - count * self.frequency - (count > 0) * self.presence


def generation_config(options, usable, vocab_size):
    """SamplingOptions to Hugging Face's names. Ids of a padded vocabulary are always forbidden."""
    o = dict(options)
    config = dict(do_sample=not o.pop("greedy", False), top_k=0, top_p=1.0, temperature=1.0)
    if "logit_bias" in o:
        config["sequence_bias"] = [[[id], float(bias)] for id, bias in o.pop("logit_bias")]
    if "force_first" in o:
        config["forced_bos_token_id"], = o.pop("force_first")
    if "forbid_first" in o:
        config["begin_suppress_tokens"] = o.pop("forbid_first")
    forbidden = o.pop("forbid", []) + list(range(usable, vocab_size))
    if forbidden:
        config["suppress_tokens"] = forbidden
    o.pop("presence_penalty", None), o.pop("frequency_penalty", None)
    config.update({name: value if name in ("top_k", "no_repeat_ngram_size") else float(value)
                   for name, value in o.items()})
    config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=None, **config)
    config._eos_token_tensor = None  # what generate() sets
    return config


def of_the_caller(options, prompt_size):
    penalties = options.get("presence_penalty", 0), options.get("frequency_penalty", 0)
    added = [PresenceAndFrequency(prompt_size, *penalties)] if any(penalties) else []
    return transformers.LogitsProcessorList(added)


def left_over(scores):
    ids = torch.nonzero(scores > -float("inf")).flatten()
    return ids.tolist(), torch.softmax(scores.double(), -1)[ids].tolist()


def filter_cases(model, options, prompt):
    config = generation_config(options, END_OF_TEXT + 1, model.config.vocab_size)
    torch.manual_seed(11)
    added = of_the_caller(options, len(prompt))
    out = model.generate(torch.tensor([prompt]), generation_config=config, logits_processor=added,
                         max_new_tokens=20, output_logits=True, output_scores=True,
                         return_dict_in_generate=True)
    processors = model._get_logits_processor(config, input_ids_seq_length=len(prompt),
                                             logits_processor=added)

    def case(place):
        so_far = out.sequences[:, :len(prompt) + place]
        assert torch.equal(processors(so_far, out.logits[place].clone()), out.scores[place])
        ids, probabilities = left_over(out.scores[place][0])
        for _ in range(10):
            noise = torch.empty_like(out.logits[place]).uniform_(-2e-4, 2e-4)
            if left_over(processors(so_far, out.logits[place] + noise)[0])[0] != ids:
                return None  # too close to a border
        return dict(options=options, prompt=prompt, tokens=so_far[0, len(prompt):].tolist(),
                    ids=ids, probabilities=[float(f"{p:.7g}") for p in probabilities])

    # One near the prompt and one further on: the first places that no border is close to.
    return [next(filter(None, map(case, places))) for places in (range(0, 5), range(5, 20))]


def greedy_case(model, options, prompt):
    config = generation_config(dict(options, greedy=True), END_OF_TEXT + 1, model.config.vocab_size)
    out = model.generate(torch.tensor([prompt]), generation_config=config, max_new_tokens=20,
                         logits_processor=of_the_caller(options, len(prompt)),
                         output_scores=True, return_dict_in_generate=True)
    for scores in out.scores:
        best = torch.topk(scores[0], 2).values
        assert best[0] - best[1] > 1e-3, f"too close to call: {options}"
    ids = out.sequences[0, len(prompt):].tolist()
    assert END_OF_TEXT not in ids
    return dict(options=options, ids=ids)


def logprobs(model, prompt, added):
    places = []
    for size in range(4):
        logits = model(input_ids=torch.tensor([prompt + added[:size]])).logits[0, -1].double()
        all = torch.log_softmax(logits, -1)
        top = torch.topk(all[:END_OF_TEXT + 1], 5)
        places.append(dict(token=added[size], logprob=all[added[size]].item(),
                           top=[[id, value] for id, value in
                                zip(top.indices.tolist(), top.values.tolist())]))
    return places


ALONE = [dict(temperature=0.6), dict(top_k=7), dict(top_p=0.6), dict(min_p=0.15),
         dict(typical_p=0.4), dict(typical_p=0.9), dict(repetition_penalty=1.7),
         dict(repetition_penalty=0.6), dict(presence_penalty=1.5), dict(frequency_penalty=0.8),
         dict(no_repeat_ngram_size=1), dict(no_repeat_ngram_size=2),
         dict(logit_bias=[[97, 6.5], [32, -4]]), dict(forbid=[32, 101]),
         dict(forbid_first=[32, 101])]
TOGETHER = [dict(temperature=0.7, top_k=20, top_p=0.8),
            dict(temperature=1.4, top_k=40, top_p=0.95, min_p=0.05, typical_p=0.7),
            dict(logit_bias=[[97, 6.5], [101, -3]], repetition_penalty=1.8, top_p=0.9),
            dict(repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=-0.4,
                 temperature=0.8, min_p=0.1),
            dict(repetition_penalty=2, no_repeat_ngram_size=2, forbid=[116], forbid_first=[97],
                 presence_penalty=-1, temperature=0.5, typical_p=0.8),
            dict(logit_bias=[[97, 4], [98, 4]], no_repeat_ngram_size=1, frequency_penalty=2,
                 temperature=2, top_k=30, top_p=0.7, min_p=0.2)]
GREEDY = [dict(repetition_penalty=1.2), dict(repetition_penalty=3), dict(presence_penalty=2),
          dict(frequency_penalty=0.5), dict(no_repeat_ngram_size=1), dict(no_repeat_ngram_size=2),
          dict(logit_bias=[[97, 3], [120, 2]]), dict(forbid=[32, 101], forbid_first=[97]),
          dict(logit_bias=[[101, 5]], repetition_penalty=1.5, no_repeat_ngram_size=3,
               presence_penalty=0.5, frequency_penalty=0.3, forbid=[110])]


def scored(model, context, continuation):
    ids = list(context) + list(continuation)
    ids = ids[-(CONTEXT + 1):]
    logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0].double()
    table = torch.log_softmax(logits, -1)[-len(continuation):]
    targets = torch.tensor(list(continuation))
    likeliest = bool((table.argmax(-1) == targets).all())
    return dict(context=list(context), continuation=list(continuation), likeliest=likeliest,
                logprob=table.gather(1, targets[:, None]).sum().item())


def scores(model, greedy):
    start = PROMPT.encode()
    pairs = [(start, b" was"), (start, b" the end of all"), (start, bytes(greedy[:5])),
             (start, bytes(greedy[:4]) + b"?"), (start * 2, b" was"), (start * 4, b" the end"),
             (start * 4, (b"word " * 10)[:CONTEXT]), (b"x", bytes(greedy[:1])),
             (bytes([65]), b"B" * 47)]
    return [scored(model, *pair) for pair in pairs]


def decoding(model, greedy):
    prompt = list(b"the cat and the c")
    cases = [case for options in ALONE + TOGETHER for case in filter_cases(model, options, prompt)]
    # Hugging Face forces the first token of a sequence, after a prompt of one.
    cases += filter_cases(model, dict(force_first=[113], temperature=0.5, top_k=9), [116])
    strides = {f"{window}/{stride}": strided_nats(model, window, stride)
               for window, stride in ((CONTEXT, 10), (20, 1), (20, 7))}
    return dict(strided=strides, scores=scores(model, greedy), filters=cases, greedy=[greedy_case(model, o, prompt) for o in GREEDY],
                logprobs=logprobs(model, list(PROMPT.encode()), greedy))


def sampling_case(model, logits, options):
    scores = torch.tensor([logits], dtype=torch.float32)
    config = generation_config(options, len(logits), len(logits))
    processors = model._get_logits_processor(config, input_ids_seq_length=1)
    left = processors(torch.tensor([[0]]), scores.clone())
    ids, probabilities = left_over(left[0])
    # The same when float32 rounds otherwise, in steps that keep equal logits equal.
    for factor in (1 - 1e-5, 1 + 1e-5):
        moved = processors(torch.tensor([[0]]), scores * factor)
        assert left_over(moved[0])[0] == ids, f"too close to a border: {logits} {options}"
    return dict(logits=logits, **options, ids=ids, probabilities=probabilities)


def make_sampling(folder, model):
    generator = torch.Generator().manual_seed(3)
    rows = [[0.5, -1.25, 3.0, 2.75, 2.5, -4.0, 0.0, 1.0],
            [1.0, 2.0, 2.0, 2.0, 0.0, -1.0],  # ties at the border of top-k
            [7.0],
            [80.0, -80.0, 79.0, 0.0],
            [round(x, 3) for x in (torch.randn(40, generator=generator) * 3).tolist()]]
    common = [dict(), dict(temperature=0.7), dict(temperature=1.5), dict(top_k=1), dict(top_k=2),
              dict(top_k=3), dict(top_k=100), dict(min_p=0), dict(min_p=0.3), dict(min_p=1),
              dict(typical_p=0.3), dict(typical_p=0.95), dict(typical_p=0.001)]
    settings = common + [dict(top_p=0.9), dict(top_p=0.5), dict(top_p=0.01), dict(top_p=0),
                         dict(temperature=0.6, top_k=5, top_p=0.8),
                         dict(temperature=2, top_k=3, top_p=0.6), dict(top_k=2, top_p=0.95),
                         dict(temperature=1.3, top_k=6, top_p=0.9, min_p=0.1, typical_p=0.6)]
    tied = common + [dict(top_k=4), dict(temperature=2, top_k=5)]
    cases = [sampling_case(model, row, options) for i, row in enumerate(rows)
             for options in (tied if i == 1 else settings)]
    write_cases(folder / "sampling.json", cases)
    print(f"sampling: {len(cases)} cases")


def write_cases(path, cases):
    lines = ",\n ".join(json.dumps(case, separators=(",", ":")) for case in cases)
    path.write_text(f"[{lines}]\n")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE)
    torch.set_num_threads(1)
    models.CONTEXT, models.WIDTH = CONTEXT, 48
    models.VOCAB = 260
    gpt2 = make_model(folder, "gpt2", 1, *models.gpt2())
    models.VOCAB = 257
    llama = make_model(folder, "llama", 2, *models.llama(2, 6, 2, 96, False, 10000.0, None))
    make_sampling(folder, gpt2[0])
    with torch.no_grad():
        cases = {name: decoding(*made) for name, made in dict(gpt2=gpt2, llama=llama).items()}
    text = json.dumps(cases, separators=(",", ":")).replace('},{"options"', '},\n{"options"')
    (folder / "decoding.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
