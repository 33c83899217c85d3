#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "core/check.h"
#include "data/bpe_trainer.h"

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
