#include "tests/launch/program/world.h"

// generate --num-beams.
namespace lockstep::black_box {
namespace {

using nlohmann::json;
using testing::HasSubstr;

World& world = World::get();

struct Beams : testing::Test {
  static Result generate(const Arguments& more) {
    Arguments arguments{"generate",  "--checkpoint", world.run(), "--precision", "fp32", "--prompt",
                        "The quick", "--max-tokens", "8"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
};

TEST_F(Beams, AreShownBestFirst) {
  const Arguments beams{"--num-beams", "4", "--num-return-sequences", "3"};
  Arguments as_json = beams;
  as_json.emplace_back("--json");
  const Result result = generate(as_json);
  ASSERT_EQ(result.code, 0) << result.err;
  const json object = json::parse(result.out);
  ASSERT_EQ(object.at("beams").size(), 3u);
  EXPECT_EQ(object.at("text"), object.at("beams")[0].at("text"));
  EXPECT_EQ(object.at("tokens"), object.at("beams")[0].at("tokens"));
  std::string shown;
  for (size_t n = 0; n < 3; n++) {
    const json& beam = object.at("beams")[n];
    EXPECT_TRUE(beam.at("finish_reason").is_string());
    EXPECT_LE(beam.at("score"), object.at("beams")[n > 0 ? n - 1 : 0].at("score"));
    shown += (n > 0 ? "\nThe quick" : "The quick") + beam.at("text").get<std::string>() + "\n";
  }
  const Result text = generate(beams);
  EXPECT_EQ(text.out, shown);
  EXPECT_THAT(text.err, HasSubstr(", score -"));
  EXPECT_FALSE(json::parse(generate({"--json"}).out).contains("beams"));
}

TEST_F(Beams, AsOptionsOfOneRequest) {
  const auto file =
      world.write("beams.jsonl",
                  "{\"prompt\": \"The quick\"}\n"
                  "{\"prompt\": \"The quick\", \"num_beams\": 4, \"early_stopping\": true}\n"
                  "{\"prompt\": \"The quick\", \"num_beams\": 4, \"early_stopping\": \"never\", "
                  "\"num_beam_groups\": 2, \"diversity_penalty\": 1.5, \"length_penalty\": 0}\n");
  const Result result = run({"generate", "--checkpoint", world.run(), "--prompt-file", file,
                             "--json", "--max-tokens", "8"});
  ASSERT_EQ(result.code, 0) << result.err;
  const std::vector<std::string> lines = lines_of(result.out);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_FALSE(json::parse(lines[0]).contains("beams"));
  for (const size_t n : {1, 2}) EXPECT_EQ(json::parse(lines[n]).at("beams").size(), 1u);
}

TEST_F(Beams, OptionsThatContradictThem) {
  expect_error(generate({"--num-beams", "4", "--temperature", "0.5"}), 2,
               {"--num-beams contradicts --temperature"});
  expect_error(generate({"--num-beams", "4", "--greedy"}), 2, {"--num-beams contradicts --greedy"});
  expect_error(generate({"--num-beams", "4", "--num-return-sequences", "5"}), 2,
               {"from 1 to --num-beams, 4"});
  expect_error(generate({"--num-return-sequences", "2"}), 2,
               {"--num-return-sequences needs --num-beams"});
  expect_error(generate({"--num-beams", "4", "--early-stopping", "maybe"}), 2,
               {"--early-stopping maybe"});
  const auto file =
      world.write("wrong.jsonl", "{\"prompt\": \"a\", \"num_beams\": 2, \"top_k\": 5}");
  expect_error(run({"generate", "--checkpoint", world.run(), "--prompt-file", file}), 2,
               {"wrong.jsonl:1: --num-beams contradicts --top-k"});
}

}  // namespace
}  // namespace lockstep::black_box
