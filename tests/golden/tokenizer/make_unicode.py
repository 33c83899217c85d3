#!/usr/bin/env python3
"""Writes data/unicode_additions.cpp: the characters that Unicode 15, 15.1 and 16 added, by property.

Debian 12's PCRE2 knows Unicode 14; Hugging Face `tokenizers` and tiktoken know 16 (both are asked
here, and must agree). Usage: make_unicode.py > data/unicode_additions.cpp, with `tokenizers` and
`tiktoken` installed."""
import tiktoken
from tokenizers import Regex, pre_tokenizers

CATEGORIES = ["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No",
              "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Han"]
BYTES = {bytes([i]): i for i in range(256)}
ALL = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
CHUNKS = ["".join(map(chr, ALL[i:i + 20000])) for i in range(0, len(ALL), 20000)]


def matched_by_hugging_face(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {ord(c) for chunk in CHUNKS for piece, _ in split.pre_tokenize_str(chunk) for c in piece}


def matched_by_tiktoken(pattern):
    encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=BYTES, special_tokens={})
    return {ord(c) for chunk in CHUNKS for c in encoding.decode(encoding.encode_ordinary(chunk))}


def ranges(codes):
    found = []
    for code in sorted(codes):
        if found and code == found[-1][1] + 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


known = matched_by_tiktoken(r"\p{Age=14.0}")
print("""// Made by tests/golden/tokenizer/make_unicode.py; do not edit.
#include "data/unicode.h"

namespace lockstep::unicode {

const std::vector<Addition>& additions() {
  // clang-format off
  static const std::vector<Addition> kAdditions = {""")
for category in CATEGORIES:
    pattern = r"\p{%s}" % category
    codes = matched_by_hugging_face(pattern)
    assert codes == matched_by_tiktoken(pattern), category
    for first, last in ranges(codes - known):
        print('      {"%s", 0x%X, 0x%X},' % (category, first, last))
print("""  };
  // clang-format on
  return kAdditions;
}

}  // namespace lockstep::unicode""")
