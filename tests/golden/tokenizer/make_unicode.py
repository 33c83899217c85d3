#!/usr/bin/env python3
"""Writes what the tokenizer knows of Unicode, with `tokenizers` and `tiktoken` installed:

  make_unicode.py additions > data/unicode_additions.cpp   the characters that Unicode 15, 15.1 and
                                                           16 added, by property
  make_unicode.py classes > data/unicode_classes.cpp       the class of every character

Debian 12's PCRE2 knows Unicode 14; Hugging Face `tokenizers` and tiktoken know 16 (both are asked
here, and must agree)."""
import sys
import textwrap

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


def matched(pattern):
    codes = matched_by_hugging_face(pattern)
    assert codes == matched_by_tiktoken(pattern), pattern
    return codes


def write_additions():
    known = matched_by_tiktoken(r"\p{Age=14.0}")
    print("""// Made by tests/golden/tokenizer/make_unicode.py; do not edit.
#include "data/unicode.h"

namespace lockstep::unicode {

const std::vector<Addition>& additions() {
  // clang-format off
  static const std::vector<Addition> kAdditions = {""")
    for category in CATEGORIES:
        for first, last in ranges(matched(r"\p{%s}" % category) - known):
            print('      {"%s", 0x%X, 0x%X},' % (category, first, last))
    print("""  };
  // clang-format on
  return kAdditions;
}

}  // namespace lockstep::unicode""")


# In the order of the bits of unicode::CharacterClass; all else is kOther.
CLASSES = [r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]", r"\p{M}", r"\p{N}", r"\s"]


def write_classes():
    classes = [len(CLASSES)] * 0x110000
    for bit, pattern in enumerate(CLASSES):
        for code in matched(pattern):
            assert classes[code] == len(CLASSES), hex(code)
            classes[code] = bit
    runs = []
    for bit in classes:
        if runs and runs[-1][0] == bit:
            runs[-1][1] += 1
        else:
            runs.append([bit, 1])
    print("""// Made by tests/golden/tokenizer/make_unicode.py; do not edit.
#include "data/unicode.h"

namespace lockstep::unicode {
namespace {

// Runs of characters of one class, from U+0000 on: 8 x length + bit of the class.
// clang-format off
constexpr uint32_t kRuns[] = {""")
    print(textwrap.fill(", ".join(str(8 * length + bit) for bit, length in runs) + "};", 98,
                        initial_indent="  ", subsequent_indent="  "))
    print("""// clang-format on

}  // namespace

const uint8_t* character_classes() {
  static const std::vector<uint8_t> kClasses = [] {
    std::vector<uint8_t> classes;
    classes.reserve(kCodePoints);
    for (const uint32_t run : kRuns) {
      classes.insert(classes.end(), run / 8, static_cast<uint8_t>(1u << run % 8));
    }
    return classes;
  }();
  return kClasses.data();
}

}  // namespace lockstep::unicode""")


{"additions": write_additions, "classes": write_classes}[sys.argv[1]]()
