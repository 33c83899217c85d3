#!/usr/bin/env python3
"""Makes beams.json: beam search by Hugging Face's generate() on the models of make.py.

usage: make_beams.py     (needs torch and transformers; written with 2.15, and 5.24 and 4.49 in turn)

Makes the part that the version at hand can make, and leaves the other as it is: versions to 4.49
and a few more have diverse beam search, in `groups`; later ones do not, and end plain beam search,
in `beams`, by other rules than those before.

Of each model and part a list of cases: options as SamplingOptions and BeamOptions name them
(logit_bias lets texts end early), prompt, and `beams`: the texts that are returned, best first, with
their ids, the end-of-text included, and score. Log-probabilities that are wrong by 0.0002 give the
same ids.
"""
import importlib.util
import itertools
import json
import pathlib

import torch
import transformers

HERE = pathlib.Path(__file__).parent
specification = importlib.util.spec_from_file_location("inference", HERE / "make.py")
inference = importlib.util.module_from_spec(specification)
specification.loader.exec_module(inference)
models = inference.models
HAS_GROUPS = hasattr(transformers.GenerationMixin, "_group_beam_search")

MAX_TOKENS = 12
PROMPTS = ["the cat and the c", "In the beginning"]


def golden_model(name, seed, config, model, names):
    torch.manual_seed(seed)
    models.randomize(names)
    blob = (HERE / f"{name}.bin").read_bytes()
    weights = b"".join((models.as_ours(config, ours, parts).numpy().view("uint32") >> 16)
                       .astype("<u2").tobytes() for ours, parts in names.items())
    assert blob.startswith(weights), "not the model of make.py"
    return model.float()


class Noise(transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores + torch.empty_like(scores).uniform_(-2e-4, 2e-4)


def search(model, prompt, options, added=()):
    o = dict(options)
    groups = {key: o.pop(key) for key in ("num_beam_groups", "diversity_penalty") if key in o}
    beams = {key: o.pop(key) for key in ("num_beams", "length_penalty", "early_stopping",
                                         "num_return_sequences") if key in o}
    usable, vocab_size = inference.END_OF_TEXT + 1, model.config.vocab_size
    fields = inference.generation_config(dict(o, greedy=True), usable, vocab_size).to_diff_dict()
    fields.update(beams, **groups, eos_token_id=inference.END_OF_TEXT, pad_token_id=0)
    out = model.generate(torch.tensor([list(prompt.encode())]),
                         generation_config=transformers.GenerationConfig(**fields),
                         logits_processor=transformers.LogitsProcessorList(added),
                         max_new_tokens=MAX_TOKENS, output_scores=True,
                         return_dict_in_generate=True)
    found = []
    for row, score in zip(out.sequences[:, len(prompt):].tolist(), out.sequences_scores.tolist()):
        if inference.END_OF_TEXT in row:
            row = row[:row.index(inference.END_OF_TEXT) + 1]
        found.append(dict(ids=row, score=score))
    return found


def case(model, prompt, options):
    """None where a little noise changes the outcome."""
    beams = search(model, prompt, options)
    ids = [beam["ids"] for beam in beams]
    for _ in range(6):
        if [beam["ids"] for beam in search(model, prompt, options, [Noise()])] != ids:
            return None
    return dict(options=options, prompt=prompt, beams=beams)


END = [[inference.END_OF_TEXT, 3.0]]  # a bias


def plain():
    """All stopping rules with length penalties, with end-of-text likelier and less so; then others."""
    end = inference.END_OF_TEXT
    for early, penalty, bias in itertools.product((True, False, "never"), (-1.0, 0.0, 1.0, 2.5),
                                                  (2.0, 4.0)):
        yield dict(num_beams=3, early_stopping=early, length_penalty=penalty,
                   num_return_sequences=3, logit_bias=[[end, bias]])
    for beams in (2, 4, 7):
        yield dict(num_beams=beams)
        yield dict(num_beams=beams, num_return_sequences=2, logit_bias=END)
    yield dict(num_beams=4, repetition_penalty=1.3, logit_bias=END)
    yield dict(num_beams=4, no_repeat_ngram_size=2, num_return_sequences=4)
    yield dict(num_beams=3, forbid=[32, 101], forbid_first=[97], logit_bias=END)


def diverse():
    for beams, groups, penalty in ((2, 2, 0.5), (4, 2, 1.0), (4, 4, 2.0), (6, 3, 0.7)):
        for more in (dict(), dict(logit_bias=END, early_stopping=True),
                     dict(logit_bias=END, length_penalty=0.0), dict(length_penalty=2.0)):
            yield dict(num_beams=beams, num_beam_groups=groups, diversity_penalty=penalty,
                       num_return_sequences=beams, **more)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(5)
    models.CONTEXT, models.WIDTH = inference.CONTEXT, 48
    models.VOCAB = 260
    made = dict(gpt2=golden_model("gpt2", 1, *models.gpt2()))
    models.VOCAB = 257
    made["llama"] = golden_model("llama", 2, *models.llama(2, 6, 2, 96, False, 10000.0, None))
    path = HERE / "beams.json"
    with torch.no_grad():
        part, settings = ("groups", diverse) if HAS_GROUPS else ("beams", plain)
        cases = json.loads(path.read_text()) if path.exists() else {name: {} for name in made}
        for name, model in made.items():
            found = [case(model, prompt, options) for options in settings() for prompt in PROMPTS]
            cases[name][part] = list(filter(None, found))
            print(f"{name}: {len(cases[name][part])} {part} of {len(found)}")
    text = json.dumps(cases, separators=(",", ":")).replace('},{"options"', '},\n{"options"')
    path.write_text(text + "\n")


if __name__ == "__main__":
    main()
