#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "core/check.h"
#include "data/bpe_trainer.h"
#include "data/pretokenizer.h"
#include "data/unicode.h"

namespace lockstep {
namespace {

using Ids = std::vector<int32_t>;

std::string random_bytes(std::mt19937& random, size_t size) {
  std::string bytes;
  // Half of the bytes from a small alphabet, so that there are words, and broken characters.
  constexpr std::string_view kUsual = "etaoin shrdlu\n\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
  for (size_t i = 0; i < size; i++) {
    const bool usual = random() % 2 == 0;
    bytes += usual ? kUsual[random() % kUsual.size()] : static_cast<char>(random() % 256);
  }
  return bytes;
}

Tokenizer small_tokenizer() {
  BpeTrainer trainer;
  for (int i = 0; i < 3; i++)
    trainer.add_text("the then there these than that \xE2\x82\xAC 2024\n");
  return trainer.train(300);
}

TEST(Tokenizer, BytesAreTheirOwnIds) {
  const Tokenizer bytes = Tokenizer::bytes();
  EXPECT_EQ(bytes.vocab_size(), 257);
  EXPECT_EQ(bytes.end_of_text(), 256);
  EXPECT_EQ(bytes.encode(std::string_view("a\0\xFF", 3)), (Ids{'a', 0, 255}));
  EXPECT_EQ(bytes.encode_with_special_tokens("a<|endoftext|>"), (Ids{'a', 256}));
  EXPECT_EQ(bytes.encode("<|endoftext|>").size(), 13u);
  EXPECT_TRUE(bytes.is_special(256));
  EXPECT_FALSE(bytes.is_special(0));
}

TEST(Tokenizer, DecodingEncodedBytesGivesThemBack) {
  std::mt19937 random(1);
  for (const Tokenizer& tokenizer : {Tokenizer::bytes(), small_tokenizer()}) {
    for (size_t size = 0; size < 400; size++) {
      const std::string bytes = random_bytes(random, size);
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(bytes)), bytes);
      EXPECT_EQ(tokenizer.decode(tokenizer.encode_with_special_tokens(bytes)), bytes);
    }
  }
}

TEST(Tokenizer, BytesThatAreNotUtf8AreSplitOffByRuns) {
  std::vector<std::string> pieces;
  const PreTokenizer pretokenizer({PreTokenizer::Step{}});
  pretokenizer.split("ab\xFF\xFE cd\xE2\x82 ef\xED\xA0\x80",
                     [&](std::string_view piece) { pieces.emplace_back(piece); });
  EXPECT_EQ(pieces,
            (std::vector<std::string>{"ab", "\xFF\xFE", " cd", "\xE2\x82", " ef", "\xED\xA0\x80"}));
}

TEST(Unicode, KnowsWholeCharacters) {
  // Smallest and largest of each length, and what is just outside.
  for (const std::string_view valid :
       {"\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
        "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_EQ(unicode::valid_prefix(valid), valid.size());
    EXPECT_EQ(unicode::invalid_prefix(valid), 0u);
    std::string again;
    unicode::append_utf8(again, unicode::first_character(valid).code);
    EXPECT_EQ(again, valid);
  }
  for (const std::string_view invalid :
       {"\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\xC3", "\xE2\x82", "\xF0\x9F\x98"}) {
    EXPECT_EQ(unicode::valid_prefix(invalid), 0u);
    EXPECT_EQ(unicode::invalid_prefix(invalid), invalid.size());
  }
}

// Hugging Face numbers added tokens that model.vocab does not hold one after the other, from the
// number of tokens there: others must be in model.vocab for it to keep their ids.
TEST(Tokenizer, AddedTokensKeepTheirIdsInHuggingFace) {
  nlohmann::json json = nlohmann::json::parse(small_tokenizer().to_json());
  const auto size = static_cast<int32_t>(json["model"]["vocab"].size());
  const auto with_added = [&](int32_t id) {
    nlohmann::json added = json;
    added["added_tokens"].push_back({{"id", id}, {"content", "<|x|>"}, {"special", true}});
    const Tokenizer tokenizer = Tokenizer::from_json(added.dump());
    EXPECT_EQ(tokenizer.vocab_size(), id + 1);
    EXPECT_EQ(tokenizer.encode_with_special_tokens("<|x|>"), (Ids{id}));
    return nlohmann::json::parse(tokenizer.to_json());
  };
  EXPECT_FALSE(with_added(size)["model"]["vocab"].contains("<|x|>"));
  EXPECT_EQ(with_added(size + 5)["model"]["vocab"]["<|x|>"], size + 5);
}

TEST(Tokenizer, JsonRoundTrips) {
  for (const Tokenizer& tokenizer : {Tokenizer::bytes(), small_tokenizer()}) {
    const std::string json = tokenizer.to_json();
    const Tokenizer again = Tokenizer::from_json(json);
    EXPECT_EQ(again.to_json(), json);
    EXPECT_EQ(again.fingerprint(), tokenizer.fingerprint());
    EXPECT_EQ(again.encode("these \xE2\x82\xAC 20"), tokenizer.encode("these \xE2\x82\xAC 20"));
  }
  EXPECT_NE(small_tokenizer().fingerprint(), Tokenizer::bytes().fingerprint());
}

TEST(BpeTrainer, MergesTheMostFrequentPairFirst) {
  BpeTrainer trainer;
  trainer.add_text("abab abab cdcd");
  // "ab" occurs 4 times, every other pair less often.
  const Tokenizer tokenizer = trainer.train(258);
  EXPECT_EQ(tokenizer.vocab_size(), 258);
  EXPECT_EQ(tokenizer.token_bytes(257), "ab");
  EXPECT_EQ(tokenizer.end_of_text(), 0);
  EXPECT_THROW(trainer.train(256), UsageError);
  // "cd" and "abab" are as frequent now; the pair of smaller ids comes first.
  EXPECT_EQ(trainer.train(259).token_bytes(258), "cd");
}

}  // namespace
}  // namespace lockstep
