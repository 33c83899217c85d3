#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "core/check.h"
#include "core/file.h"
#include "data/tokenizer.h"
#include "tests/data/temporary_folder.h"

// Damaged and hostile tokenizer files: always a DataError that names the file and the field.
namespace lockstep {
namespace {

using Json = nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

Json gpt2() {
  return Json::parse(read_file(std::filesystem::path(LOCKSTEP_GOLDEN) / "tokenizer" / "gpt2.json"));
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const DataError& error) {
    return error.what();
  }
  return "(no error)";
}

std::string error_of_json(std::string_view json) {
  return error_of([&] { Tokenizer::from_json(json, "some/tokenizer.json"); });
}

struct Damage {
  const char* name;
  std::function<void(Json&)> apply;
  const char* field;   // what the message names
  const char* reason;  // and says
};

// Prints a case by its name in test output.
void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

class DamagedTokenizer : public testing::TestWithParam<Damage> {};

TEST_P(DamagedTokenizer, IsRefusedByFieldAndReason) {
  Json json = gpt2();
  GetParam().apply(json);
  EXPECT_THAT(error_of_json(json.dump()),
              AllOf(HasSubstr("some/tokenizer.json"), HasSubstr(GetParam().field),
                    HasSubstr(GetParam().reason)));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, DamagedTokenizer,
    testing::Values(
        Damage{"no_model", [](Json& j) { j.erase("model"); }, "model", "missing"},
        Damage{"unigram", [](Json& j) { j["model"]["type"] = "Unigram"; }, "model.type",
               "'Unigram' is not supported"},
        Damage{"no_vocab", [](Json& j) { j["model"].erase("vocab"); }, "model.vocab", "expected"},
        Damage{"negative_id", [](Json& j) { j["model"]["vocab"]["a"] = -1; }, "token 'a'",
               "not a whole number"},
        Damage{"fractional_id", [](Json& j) { j["model"]["vocab"]["a"] = 1.5; }, "token 'a'",
               "not a whole number"},
        Damage{"huge_id", [](Json& j) { j["model"]["vocab"]["a"] = 18446744073709551615u; },
               "token 'a'", "far above"},
        Damage{"duplicate_id", [](Json& j) { j["model"]["vocab"]["a"] = 5; }, "model.vocab",
               "id 5 is that of"},
        Damage{"empty_token", [](Json& j) { j["model"]["vocab"][""] = 3000; }, "model.vocab",
               "without text"},
        Damage{"missing_byte",
               [](Json& j) {
                 j["model"]["vocab"].erase("a");
                 j["model"]["merges"] = Json::array();
               },
               "vocabulary", "no token for byte 0x61"},
        Damage{"merge_of_unknown",
               [](Json& j) {
                 j["model"]["merges"].push_back({"qqq", "zzz"});
               },
               "model.merges[", "'qqq' is not in model.vocab"},
        Damage{"merge_into_unknown", [](Json& j) { j["model"]["merges"].push_back("~ ~"); },
               "model.merges", "'~ ~' makes a token that is not in model.vocab"},
        Damage{"merge_of_one", [](Json& j) { j["model"]["merges"].push_back("abc"); },
               "model.merges[", "two tokens are expected"},
        Damage{"merge_of_three", [](Json& j) { j["model"]["merges"].push_back("a b c"); },
               "model.merges[", "two tokens are expected"},
        Damage{"merge_of_numbers",
               [](Json& j) {
                 j["model"]["merges"].push_back({1, 2});
               },
               "model.merges[", "two tokens are expected"},
        Damage{"dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }, "model.dropout",
               "not supported"},
        Damage{"word_suffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; },
               "model.end_of_word_suffix", "'</w>' is not supported"},
        Damage{"byte_fallback", [](Json& j) { j["model"]["byte_fallback"] = true; },
               "model.byte_fallback", "not supported"},
        Damage{"normalizer",
               [](Json& j) {
                 j["normalizer"] = {{"type", "Lowercase"}};
               },
               "normalizer.type", "'Lowercase' is not supported"},
        Damage{"metaspace",
               [](Json& j) {
                 j["pre_tokenizer"] = {{"type", "Metaspace"}};
               },
               "pre_tokenizer.type", "'Metaspace' is not supported"},
        Damage{"no_pre_tokenizer", [](Json& j) { j["pre_tokenizer"] = nullptr; }, "pre_tokenizer",
               "ByteLevel"},
        Damage{"prefix_space", [](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; },
               "pre_tokenizer.add_prefix_space", "not supported"},
        Damage{
            "broken_pattern",
            [](Json& j) {
              j["pre_tokenizer"] = {
                  {"type", "Sequence"},
                  {"pretokenizers",
                   {{{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}},
                    j["pre_tokenizer"]}}};
            },
            "pre_tokenizer.pretokenizers[0].pattern", "does not compile"},
        Damage{"behavior",
               [](Json& j) {
                 j["pre_tokenizer"] = {
                     {"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Sideways"}};
               },
               "pre_tokenizer.behavior", "'Sideways' is not a behavior"},
        Damage{"decoder",
               [](Json& j) {
                 j["decoder"] = {{"type", "WordPiece"}};
               },
               "decoder.type", "'WordPiece' is not supported"},
        Damage{"added_twice", [](Json& j) { j["added_tokens"].push_back(j["added_tokens"][0]); },
               "added_tokens", "contradicts"},
        Damage{"added_elsewhere", [](Json& j) { j["added_tokens"][0]["id"] = 7; }, "added_tokens",
               "contradicts model.vocab"},
        Damage{"added_over_another",
               [](Json& j) {
                 j["added_tokens"].push_back({{"id", 300}, {"content", "<|new|>"}});
               },
               "added_tokens", "contradicts that of another token"},
        Damage{"added_far_away",
               [](Json& j) {
                 j["added_tokens"].push_back({{"id", 2000000000}, {"content", "<|new|>"}});
               },
               "added_tokens", "far above"},
        Damage{"added_without_id",
               [](Json& j) {
                 j["added_tokens"].push_back({{"content", "<|new|>"}});
               },
               "added_tokens[1].id", "an id is expected"},
        Damage{"added_single_word", [](Json& j) { j["added_tokens"][0]["single_word"] = true; },
               "added_tokens[0].single_word", "not supported"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(TokenizerErrors, WhatIsNotATokenizerIsRefused) {
  EXPECT_THAT(error_of_json(""), HasSubstr("not JSON"));
  EXPECT_THAT(error_of_json("[]"), HasSubstr("no JSON object"));
  EXPECT_THAT(error_of_json("{\"model\": \"\xFF\"}"), HasSubstr("not JSON"));
  EXPECT_THAT(error_of_json("{\"model\": {\"vocab\": {\"a\": 1e999}}}"), HasSubstr("not JSON"));
  EXPECT_THAT(error_of_json(std::string(1000000, '[')), HasSubstr("nested deeper"));
  const std::string whole = gpt2().dump();
  EXPECT_THAT(error_of_json(whole.substr(0, whole.size() / 2)), HasSubstr("cut short"));
}

TEST(TokenizerErrors, FilesAndFolders) {
  const TemporaryFolder folder;
  const auto error_of_load = [](const std::filesystem::path& path) {
    return error_of([&] { Tokenizer::load(path); });
  };
  EXPECT_THAT(error_of_load(folder.path()), HasSubstr("no tokenizer there"));
  EXPECT_THAT(error_of_load(folder.path() / "missing.json"), HasSubstr("missing.json"));
  folder.write("a/vocab.json", gpt2()["model"]["vocab"].dump());
  folder.write("a/merges.txt", "#version: 0.2\nt h\nx\n");
  EXPECT_THAT(error_of_load(folder.path() / "a"),
              AllOf(HasSubstr("merges.txt: line 3"), HasSubstr("two tokens are expected")));
  folder.write("a/merges.txt", "t h\nqqq h\n");
  EXPECT_THAT(error_of_load(folder.path() / "a"),
              AllOf(HasSubstr("merges.txt: line 2"), HasSubstr("'qqq' is not in")));
}

TEST(TokenizerErrors, RankFiles) {
  const TemporaryFolder folder;
  const auto error_of_ranks = [&](const std::string& name, const std::string& content) {
    return error_of([&] { Tokenizer::load(folder.write(name, content)); });
  };
  EXPECT_THAT(error_of_ranks("x.tiktoken", "YQ== 0\nYg== 1\n"),
              AllOf(HasSubstr("x.tiktoken"), HasSubstr("does not say how text is split")));
  EXPECT_THAT(error_of_ranks("cl100k.tiktoken", "YQ== 0\nYg== 1\n"),
              HasSubstr("no token for byte 0x00"));
  EXPECT_THAT(error_of_ranks("cl100k.tiktoken", "YQ== 0\nYg== 0\n"),
              AllOf(HasSubstr("line 2"), HasSubstr("rank 0 is there twice")));
  EXPECT_THAT(error_of_ranks("cl100k.tiktoken", "YQ== 0\nY~== 1\n"), HasSubstr("line 2"));
  EXPECT_THAT(error_of_ranks("cl100k.tiktoken", "YQ== 0\nYg== 99999999999\n"), HasSubstr("line 2"));
  EXPECT_THAT(error_of_ranks("cl100k.tiktoken", "YQ== 0\nYQ== 1\n"),
              HasSubstr("line 2: this token is there twice"));
}

TEST(TokenizerErrors, IdsOutsideTheVocabularyAreNotDecoded) {
  const Tokenizer bytes = Tokenizer::bytes();
  EXPECT_THROW(bytes.decode(std::vector<int32_t>{257}), DataError);
  EXPECT_THROW(bytes.decode(std::vector<int32_t>{-1}), DataError);
}

// Whatever is changed in a file, it loads or is refused; nothing else.
TEST(TokenizerErrors, RandomDamageNeverCrashes) {
  std::mt19937 random(1);
  const std::string whole =
      read_file(std::filesystem::path(LOCKSTEP_GOLDEN) / "tokenizer" / "llama3.json");
  constexpr std::string_view kBytes = "{}[]\",:\\0129-e.tfnu<|> \xC3\xFF";
  int refused = 0;
  for (int i = 0; i < 200; i++) {
    std::string json = whole;
    for (int k = 0; k < 3; k++) {
      // Half of the changes go where the settings are, in front of the vocabulary.
      const size_t place = random() % (random() % 2 == 0 ? 1500 : json.size());
      json[place] = kBytes[random() % kBytes.size()];
    }
    if (random() % 8 == 0) json.resize(random() % json.size());
    try {
      const Tokenizer tokenizer = Tokenizer::from_json(json);
      EXPECT_EQ(tokenizer.decode(tokenizer.encode("text 123")).empty(), false);
    } catch (const DataError&) {
      refused++;
    }
  }
  EXPECT_GT(refused, 50);
}

}  // namespace
}  // namespace lockstep
