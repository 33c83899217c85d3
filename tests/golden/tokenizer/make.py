#!/usr/bin/env python3
"""Makes the golden data of the tokenizer tests, with Hugging Face `tokenizers` and tiktoken.

  corpus.txt    what the small tokenizers below are trained on
  texts.json    texts to encode: every Unicode plane, white space, numbers, code, emoji, ...
  NAME.json     a tokenizer.json that Hugging Face trained with the pattern of NAME
  NAME.ids.json ids of the texts: "plain" (special tokens are text) and, where they differ, by index
                of the text, "special" (they are found) by Hugging Face, and "tiktoken", by tiktoken
                from the same tokens without special ones (whose id 0 it does not have: ids are one
                less there; what differs is what is not)
  pieces.json   pre-tokenizers, and the pieces into which Hugging Face splits texts by them

Usage: make.py FOLDER, with `tokenizers` 0.23 and `tiktoken` 0.14 installed."""
import json
import random
import sys
from pathlib import Path

import tiktoken
import tiktoken_ext.openai_public as openai
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = [
    "The train leaves at 10:45 and doesn't stop before the river.",
    "She said it's cold; they've read all 1234 pages, and we'll see.",
    "Gradients are summed over workers, in the same order each time.",
    "for (int i = 0; i < count; i++) {\n    sum += values[i] * weights[i];\n}\n",
    "def forward(self, x):\n\treturn self.norm(x) @ self.weight.T  # (B, T, C)\n\n",
    "Der Zug hält größtenteils in Köln, während es draußen schneit.",
    "Où est passé l'élève qui n'a pas mangé ? Là-bas, peut-être.",
    "Поезд отправляется утром, а возвращается вечером.",
    "列车早上出发，晚上回来。我们在北京等你。",
    "電車は朝に出発します。カタカナとひらがな。",
    "기차는 아침에 출발합니다.",
    "القطار يغادر في الصباح ويعود في المساء.",
    "रेलगाड़ी सुबह निकलती है और शाम को लौटती है।",
    "รถไฟออกตอนเช้า",
    "Τα τρένα φεύγουν το πρωί. שלום עולם",
    "x = 3.14159 + 2,718,281 - 0xFF; y = [1, 2, 3]\r\n",
    "HTTPServer getURLFromString McDonald's WHO'LL iPhone15 👍🏽 👩‍👩‍👧 🇩🇪",
    "\n\n  * one\n  * two\n\t- three   \n",
]

# As published tokenizer.json files hold them; GPT-2's is what `ByteLevel` splits by.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = "|".join([
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{ENDING}",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{ENDING}",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
PATTERNS = {"cl100k": LLAMA3, "llama3": LLAMA3, "o200k": O200K}


def tiktoken_pattern(function):
    """The pattern of one of tiktoken's encodings, without downloading its ranks."""
    saved = openai.load_tiktoken_bpe
    openai.load_tiktoken_bpe = lambda *args, **kwargs: {}
    try:
        return function()["pat_str"]
    finally:
        openai.load_tiktoken_bpe = saved


TIKTOKEN_PATTERNS = {
    "gpt2": tiktoken_pattern(openai.r50k_base),
    "cl100k": tiktoken_pattern(openai.cl100k_base),
    "o200k": tiktoken_pattern(openai.o200k_base),
    "llama3": LLAMA3,  # Llama 3's own code hands this to tiktoken
}


def make_corpus(rng):
    return " ".join(rng.choice(SENTENCES) for _ in range(600)) + "\n"


def characters_of_plane(plane, rng, step):
    first, last = plane << 16, (plane << 16) + 0xFFFF
    codes = [rng.randrange(c, min(c + step, last + 1)) for c in range(first, last + 1, step)]
    return [chr(c) for c in codes if not 0xD800 <= c <= 0xDFFF]


def make_texts(rng):
    texts = ["", " ", "a", "\n", "The quick brown fox doesn't; it's 12345 and we'll've THEY'RE it'S"]
    texts += ["'s 's'S 't'T '\u017f '\u212a 'll'LL 'vE \u2019s n't", "can't  won't   I'd'd'd 'r'e're"]
    texts += ["   leading", "trailing   ", "a  b   c    d", "tabs\t\tand\t spaces \t", "a\n\nb\n \nc \n  d",
              "x\n ", "x \n \n", "x\r\n\r\ny\r\r\n z\r", "\u00a0nbsp\u00a0\u00a0x", "\u0085nel\u0085",
              "\u180e\u180ea", "\u2028line\u2029par\u3000ideo\u2003em\u200bzero\ufeffbom", "\x0b\x0c\x1c\x1f\x00x"]
    texts += ["1 12 123 1234 12345 1234567890", "3.14 1,000,000 1e-5 0xFF ½ ⅷ ² ৩৪৫ ١٢٣٤ 五六 𝟙𝟚𝟛𝟜",
              "a1b22c333d4444", "2024-01-02T03:04:05Z"]
    texts += ["if (a<b) { return !c->d[3]; } // ok\n\t\t#define X(y) y##_z\r\n", "https://example.org/a/b?c=d&e=f#g",
              "<html><body class=\"x\">&amp;</body></html>", "{\"k\": [1, null, \"v\\n\"]}", "--- === *** /// \\\\ ...!!!???"]
    texts += ["👩‍👩‍👧‍👦👍🏽 🏳️‍🌈🇩🇪🇫🇷 1️⃣ ☺️ 🫨🫩", "e\u0301 a\u0308\u0304\u0323 ḱ̃ Z̷̢͎a̸l̴g̵o̶", "हिन्दी கணினி ภาษาไทย မြန်မာ",
              "שָׁלוֹם مُحَمَّد\u200f\u200e", "ǅ ǆ Ǆ ʰx ªº ﬁ Ａｂｃ Ⅷ ⓐ", "iPhone HTTPServer XMLHttpRequest McDonald's éCOLE Éa ÉA",
              "日本語テキスト。漢字かな交じり文、全角！？", "한국어 텍스트입니다", "Ελληνικά Кириллица ქართული հայերեն"]
    texts += ["a" * 300, "ab" * 150, " " * 130 + "x", "\n" * 70, "=" * 100, "9" * 50,
              "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(250)),
              "und" * 40 + "ähnlichkeitsüberprüfungsverfahren" * 4]
    for plane in range(17):
        step = {0: 0x40, 1: 0x100, 2: 0x800, 3: 0x400}.get(plane, 0x2000)
        characters = characters_of_plane(plane, rng, step)
        texts.append("".join(characters))
        texts.append(" ".join(f"{c}a{c}1" for c in characters[:: max(1, len(characters) // 40)]))
    newer = [0x1C89, 0x0897, 0xA7CB, 0x10D40, 0x10D50, 0x11F04, 0x16D40, 0x1E4D0, 0x1CCF0, 0x1FAE9, 0x2EBF0, 0x31350, 0x323AF]
    texts.append("".join(chr(c) + " a" + chr(c) + chr(c) + "1" for c in newer))  # Unicode 15 to 16
    texts += ["<|endoftext|>", "a<|endoftext|>b <|endoftext|> c<|endoftext|><|endoftext|>", "<|endoftext", "<|endoftext|",
              "x <|mask|>  y\u3000<|mask|>", "x <|right|>  \n y<|right|>", "<|end|><|end|>x<|end|><|e", "a    b  <|end|>    c",
              "added word addedword added", "train leavesx now leavesxx", "\u00e9t\u00e9 <|\u00e9|> <|end\u2581of|>"]
    pieces = SENTENCES + texts[:60]
    for _ in range(12):
        texts.append("".join(rng.choice(pieces)[: rng.randrange(1, 40)] + rng.choice(["", " ", "\n", "  "]) for _ in range(8)))
    return texts


def train(corpus, pre_tokenizer, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([corpus], trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"], show_progress=False))
    return tokenizer


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def tiktoken_of(tokenizer, pattern):
    """The same tokens as ranks: special tokens come first in Hugging Face's vocabulary."""
    byte_of = {c: b for b, c in bytes_to_unicode().items()}
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    ranks = {bytes(byte_of[c] for c in token): i - 1 for token, i in vocab.items() if i > 0}
    return tiktoken.Encoding("golden", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def bytes_to_unicode():
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(others)}


def add_tokens(tokenizer):
    """Added tokens with every setting, overlapping ones among them."""
    tokenizer.add_special_tokens([
        AddedToken("<|end|>", special=True), AddedToken("<|end|><|end|>x", special=True),
        AddedToken("<|mask|>", special=True, lstrip=True), AddedToken("<|right|>", special=True, rstrip=True),
        AddedToken("<|end\u2581of|>", special=True)])
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("added", normalized=True),
                          AddedToken("added word", normalized=True), AddedToken("<|\u00e9|>", normalized=True)])


def make_pieces():
    """Pre-tokenizers by themselves: behaviours, digits, sequences, and Oniguruma's dialect."""
    split, digits = pre_tokenizers.Split, pre_tokenizers.Digits
    text = "  The-final--countdown 12345 ,x,, ½y１２٣ Ｈi\u3000漢字かな ab123cd!?\r\n\n x- "
    cases = []
    for behavior in ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]:
        for invert in [False, True]:
            cases.append(split("-", behavior, invert))
            cases.append(split(Regex(r"\s|[,\-]"), behavior, invert))
    cases += [split(Regex(p), "isolated") for p in [
        r"\p{N}{1,2}+", r"(?:\d{2}){1,2}+x?", r"[a-z]{2}+n", r" ?[^(\s|[.,!?…。，、।۔،])]+", r"\u6f22|\x{5b57}", r"[\u3040-\u309f]+",
        r"x*", r"(?=1)", r"^ +|x-? $", r"(?i)THE|HI", r"[[:alpha:]]+", r"\P{L}+", r"\p{^L}", r"[^\s]+", r"\S", r"\D\d",
        r"(?<=,)x|(?<!-)-", r"a{,2}", r"c{2", r"\d{2}?3", r"[\d]{2,3}?", r"\v|\t|[\b]", r"[]a]", r"(\w)?".replace(r"\w", "[a-c]"), r".+", r"\A |\s\z", r"\p{Han}+"]]
    cases += [digits(individual_digits=True), digits(individual_digits=False)]
    cases.append(pre_tokenizers.Sequence([split(Regex(r"\p{N}{1,3}"), "isolated"), split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
                                          split(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated")]))
    texts = {text: cases}
    # Characters that are white space to some and not to others, and those of Unicode 15 to 16.
    odd = ("a\u0085b\u180ec\u2028\u200b\u3000 \u0085 x \U00010d50\U00010d70a1\U00010d40 \u1c89\ua7cb\u0897"
           "\U00031350\U0002ebf0b \U0001fae9\U00016d40'\u017f \ufeff\u00a0\u2003 ")
    texts[odd] = [split(Regex(p), "isolated") for p in [
        GPT2, LLAMA3, O200K, r"\s", r"\S+", r"\p{Lu}", r"\P{L}", r"[^\p{N}]+", r"\p{Han}+", r"\d", r"\p{M}", r"\p{So}"]]
    made = []
    for text, cases in texts.items():
        for case in cases:
            state = json.loads(case.__getstate__())
            spans = [span for _, span in case.pre_tokenize_str(text)]
            made.append({"text": text, "pre_tokenizer": state, "pieces": [text[a:b] for a, b in spans]})
    return made


def dump(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def main():
    folder = Path(sys.argv[1])
    rng = random.Random(2024)
    corpus = make_corpus(rng)
    texts = make_texts(rng)
    (folder / "corpus.txt").write_text(corpus, newline="")
    (folder / "texts.json").write_text(dump(texts), newline="")
    (folder / "pieces.json").write_text(dump(make_pieces()), newline="")
    for name in ["gpt2", "cl100k", "llama3", "o200k"]:
        pre_tokenizer = (pre_tokenizers.ByteLevel(add_prefix_space=False) if name == "gpt2"
                         else split_then_bytes(PATTERNS[name]))
        tokenizer = train(corpus, pre_tokenizer, 1000 if name == "gpt2" else 700)
        encoding = tiktoken_of(tokenizer, TIKTOKEN_PATTERNS[name])
        if name == "llama3":
            add_tokens(tokenizer)
            state = json.loads(tokenizer.to_str())
            state["model"]["ignore_merges"] = True
            # A token that no merge makes: found only because merges are ignored for whole pieces.
            state["model"]["vocab"]["Ġleavesx"] = len(state["model"]["vocab"])
            tokenizer = Tokenizer.from_str(json.dumps(state))
        tokenizer.encode_special_tokens = True
        plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        tokenizer.encode_special_tokens = False
        special = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        ranks = [encoding.encode_ordinary(text) for text in texts]
        ids = {"plain": plain,
               "special": {i: s for i, (p, s) in enumerate(zip(plain, special)) if s != p},
               "tiktoken": {i: r for i, (p, r) in enumerate(zip(plain, ranks)) if r != [x - 1 for x in p]}}
        (folder / f"{name}.json").write_text(dump(json.loads(tokenizer.to_str())), newline="")
        (folder / f"{name}.ids.json").write_text(dump(ids), newline="")


main()
