#include "data/word_scanner.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "data/pretokenizer.h"
#include "data/pretokenizer_pattern.h"
#include "data/unicode.h"

// Scanners against the regular expressions that they stand for, matched by PCRE2.
namespace lockstep {
namespace {

using Pieces = std::vector<std::string_view>;

struct Pattern {
  const char* name;
  std::string_view text;
};

constexpr Pattern kPatterns[] = {{"gpt2", kGpt2Pattern},     {"r50k", kR50kPattern},
                                 {"cl100k", kCl100kPattern}, {"llama3", kLlama3Pattern},
                                 {"qwen2", kQwen2Pattern},   {"o200k", kO200kPattern}};

Pieces pieces_of(const PreTokenizer& pretokenizer, std::string_view text) {
  Pieces pieces;
  pretokenizer.split(text, [&](std::string_view piece) { pieces.push_back(piece); });
  return pieces;
}

// Characters that the patterns treat in different ways, and pieces of broken ones.
const std::vector<std::string>& units() {
  static const std::vector<std::string> kUnits = {"'",
                                                  "'",
                                                  "s",
                                                  "S",
                                                  "\u017F",
                                                  "t",
                                                  "T",
                                                  "re",
                                                  "Re",
                                                  "RE",
                                                  "vE",
                                                  "m",
                                                  "M",
                                                  "ll",
                                                  "lL",
                                                  "l",
                                                  "d",
                                                  "k",
                                                  "\u212A",
                                                  " ",
                                                  " ",
                                                  "  ",
                                                  "\t",
                                                  "\n",
                                                  "\r",
                                                  "\r\n",
                                                  "\v",
                                                  "\u0085",
                                                  "\u00A0",
                                                  "\u2028",
                                                  "\u3000",
                                                  "\u200B",
                                                  "1",
                                                  "23",
                                                  "4567",
                                                  "\u0663",
                                                  "\u00BD",
                                                  "\u2167",
                                                  "a",
                                                  "Z",
                                                  "Hello",
                                                  "lower",
                                                  "UPPER",
                                                  "averylongwordofmorethansixteenletters",
                                                  "camelCase",
                                                  "\u00E9",
                                                  "\u00C9",
                                                  "\u01C5",
                                                  "\u02B0",
                                                  "\u4E2D",
                                                  "\u00AA",
                                                  "\u0301",
                                                  "\u20DD",
                                                  "\u0903",
                                                  "!",
                                                  "/",
                                                  "//",
                                                  "-",
                                                  "_",
                                                  "\u20AC",
                                                  "\U0001F600",
                                                  "\u1C89",
                                                  "\uA7CD",
                                                  "\U00010D4F",
                                                  "\U0001E5F1",
                                                  "\u0897",
                                                  std::string(1, '\0'),
                                                  "\x7F",
                                                  "\xFF",
                                                  "\xE2\x82",
                                                  "\xC5"};
  return kUnits;
}

std::string random_text(std::mt19937& random, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; i++) {
    if (random() % 16 > 0) {
      text += units()[random() % units().size()];
    } else {
      unicode::append_utf8(text, static_cast<uint32_t>(random() % 0x20000));  // and surrogates
    }
  }
  return text;
}

class WordScannerOf : public testing::TestWithParam<Pattern> {
 protected:
  // In a group the pattern has another text, which no scanner is for.
  const std::string group_ = "(?:" + std::string(GetParam().text) + ")";
  const PreTokenizer scanned_{
      {{.kind = PreTokenizer::Step::Kind::split, .pattern = std::string(GetParam().text)}}};
  const PreTokenizer matched_{{{.kind = PreTokenizer::Step::Kind::split, .pattern = group_}}};
};

TEST_P(WordScannerOf, KnowsItsPattern) {
  EXPECT_TRUE(WordScanner::of_pattern(GetParam().text));
  EXPECT_FALSE(WordScanner::of_pattern(group_));
}

TEST_P(WordScannerOf, SplitsRandomTextAsPcre2) {
  std::mt19937 random(3);
  for (int i = 0; i < 100'000; i++) {
    const std::string text = random_text(random, 1 + random() % 10);
    ASSERT_EQ(pieces_of(scanned_, text), pieces_of(matched_, text)) << testing::PrintToString(text);
  }
  const std::string text = random_text(random, 100'000);
  EXPECT_EQ(pieces_of(scanned_, text), pieces_of(matched_, text));
}

// Every character that has a class of its own or lies near one, in several surroundings; of the
// large planes that have none, a sample.
TEST_P(WordScannerOf, ClassifiesEveryCharacterAsPcre2) {
  std::string text;
  for (uint32_t code = 0;
       code<unicode::kCodePoints; code += code> 0x34000 && code >> 12 != 0xE0 ? 251 : 1) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string c;
    unicode::append_utf8(c, code);
    text += "a" + c + "B" + c + c + " " + c + "1\n";
  }
  EXPECT_EQ(pieces_of(scanned_, text), pieces_of(matched_, text));
}

INSTANTIATE_TEST_SUITE_P(Patterns, WordScannerOf, testing::ValuesIn(kPatterns),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace lockstep
