#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "core/check.h"
#include "core/file.h"
#include "data/bpe_trainer.h"
#include "data/tokenizer.h"
#include "data/tokenizer_parts.h"
#include "tests/data/temporary_folder.h"

// Against Hugging Face `tokenizers` and tiktoken (tests/golden/tokenizer/make.py).
namespace lockstep {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(LOCKSTEP_GOLDEN) / "tokenizer" / name;
}

std::string golden_text(const std::string& name) { return read_file(golden(name)); }

std::vector<std::string> golden_texts() {
  return Json::parse(golden_text("texts.json")).get<std::vector<std::string>>();
}

// The ids of text i in a table of those that differ from `usual`.
Ids ids_or(const Json& differing, size_t i, Ids usual) {
  const auto found = differing.find(std::to_string(i));
  return found == differing.end() ? usual : found->get<Ids>();
}

class TokenizerGolden : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerGolden, EncodesAsHuggingFace) {
  const std::string name = GetParam();
  const Tokenizer loaded = Tokenizer::load(golden(name + ".json"));
  const Json expected = Json::parse(golden_text(name + ".ids.json"));
  const std::vector<std::string> texts = golden_texts();
  ASSERT_EQ(texts.size(), expected["plain"].size());
  for (const Tokenizer& tokenizer : {loaded, Tokenizer::from_json(loaded.to_json())}) {
    for (size_t i = 0; i < texts.size(); i++) {
      const Ids plain = expected["plain"][i].get<Ids>();
      EXPECT_EQ(tokenizer.encode(texts[i]), plain) << "text " << i << ": " << texts[i];
      EXPECT_EQ(tokenizer.encode_with_special_tokens(texts[i]),
                ids_or(expected["special"], i, plain))
          << "text " << i << ": " << texts[i];
      EXPECT_EQ(tokenizer.decode(plain), texts[i]);
    }
  }
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; k++) {
      bits = bits << 8 | (i + k < bytes.size() ? static_cast<uint8_t>(bytes[i + k]) : 0u);
    }
    for (size_t k = 0; k < 4; k++) {
      text += i + k > bytes.size() ? '=' : kDigits[bits >> (18 - 6 * k) & 63];
    }
  }
  return text;
}

// The rank file of a golden tokenizer: its tokens without <|endoftext|> (id 0) and what was added.
std::string rank_file(const Tokenizer& tokenizer, int32_t num_ranks) {
  std::string lines;
  for (int32_t rank = 0; rank < num_ranks; rank++) {
    lines += base64(tokenizer.token_bytes(rank + 1)) + " " + std::to_string(rank) + "\n";
  }
  return lines;
}

TEST_P(TokenizerGolden, EncodesAsTiktokenFromARankFile) {
  const std::string name = GetParam();
  const Json model = Json::parse(golden_text(name + ".json"))["model"];
  const auto num_ranks = static_cast<int32_t>(256 + model["merges"].size());
  const TemporaryFolder folder;
  const std::filesystem::path path = folder.write(
      name + "_small.tiktoken", rank_file(Tokenizer::load(golden(name + ".json")), num_ranks));
  const Tokenizer loaded = Tokenizer::load(path);
  EXPECT_EQ(loaded.end_of_text(), num_ranks);
  EXPECT_EQ(loaded.vocab_size(), num_ranks + 1);
  const Json expected = Json::parse(golden_text(name + ".ids.json"));
  const std::vector<std::string> texts = golden_texts();
  for (const Tokenizer& tokenizer :
       {loaded, Tokenizer::load(path.parent_path()), Tokenizer::from_json(loaded.to_json())}) {
    for (size_t i = 0; i < texts.size(); i++) {
      Ids plain = expected["plain"][i].get<Ids>();
      for (int32_t& id : plain) id--;
      EXPECT_EQ(tokenizer.encode(texts[i]), ids_or(expected["tiktoken"], i, plain))
          << "text " << i << ": " << texts[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Patterns, TokenizerGolden,
                         testing::Values("gpt2", "cl100k", "llama3", "o200k"),
                         [](const auto& test) { return std::string(test.param); });

TEST(TokenizerGoldenFiles, TrainsAsHuggingFace) {
  const Json expected = Json::parse(golden_text("gpt2.json"));
  BpeTrainer trainer;
  trainer.add_text(golden_text("corpus.txt"));
  const Json trained = Json::parse(trainer.train(1000).to_json());
  EXPECT_EQ(trained["model"]["vocab"], expected["model"]["vocab"]);
  ASSERT_EQ(trained["model"]["merges"].size(), expected["model"]["merges"].size());
  for (size_t i = 0; i < expected["model"]["merges"].size(); i++) {
    const Json& merge = expected["model"]["merges"][i];
    EXPECT_EQ(trained["model"]["merges"][i],
              merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  EXPECT_EQ(trained["added_tokens"], expected["added_tokens"]);
  EXPECT_EQ(trained["pre_tokenizer"], expected["pre_tokenizer"]);
}

TEST(TokenizerGoldenFiles, LoadsGpt2VocabAndMerges) {
  const Json gpt2 = Json::parse(golden_text("gpt2.json"));
  const TemporaryFolder folder;
  folder.write("vocab.json", gpt2["model"]["vocab"].dump());
  std::string merges = "#version: 0.2\n";
  for (const Json& merge : gpt2["model"]["merges"]) {
    merges += merge[0].get<std::string>() + " " + merge[1].get<std::string>() + "\n";
  }
  folder.write("merges.txt", merges);
  const Tokenizer tokenizer = Tokenizer::load(folder.path());
  EXPECT_EQ(tokenizer.fingerprint(), Tokenizer::load(golden("gpt2.json")).fingerprint());
  EXPECT_EQ(tokenizer.end_of_text(), 0);
}

TEST(TokenizerGoldenFiles, SplitsAsHuggingFace) {
  Json document = Json::parse(Tokenizer::bytes().to_json());
  const Json bytes_only = document["pre_tokenizer"];
  for (const Json& item : Json::parse(golden_text("pieces.json"))) {
    const std::string text = item["text"];
    document["pre_tokenizer"] = {{"type", "Sequence"},
                                 {"pretokenizers", {item["pre_tokenizer"], bytes_only}}};
    const TokenizerParts parts = parse_tokenizer_json(document.dump(), "golden");
    std::vector<std::string> pieces;
    PreTokenizer(parts.steps).split(text, [&](std::string_view piece) {
      pieces.emplace_back(piece);
    });
    EXPECT_EQ(pieces, item["pieces"].get<std::vector<std::string>>()) << item["pre_tokenizer"];
  }
}

}  // namespace
}  // namespace lockstep
