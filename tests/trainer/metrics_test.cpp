#include "trainer/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "tests/trainer/temporary_folder.h"

namespace lockstep {
namespace {

std::vector<nlohmann::ordered_json> lines(const std::filesystem::path& path) {
  std::istringstream file(read_file(path));
  std::vector<nlohmann::ordered_json> all;
  for (std::string line; std::getline(file, line);) {
    all.push_back(nlohmann::ordered_json::parse(line));
  }
  return all;
}

StepResult step(int64_t number) {
  return {.step = number, .loss = 5.5, .grad_norm = 0.25, .learning_rate = 1e-3, .loss_scale = 2};
}

TEST(MetricsFile, HoldsTheFieldsOfTheContractInOrder) {
  const TemporaryFolder folder;
  MetricsFile metrics(folder.path() / "metrics.jsonl", 0);
  metrics.write(step(1), 2048, 2048, 0.5, std::nullopt);
  metrics.write(step(2), 4096, 2048, 0.5,
                Evaluation{.loss = 4.5, .bits_per_byte = 2.5, .loss_interval = {}});
  const auto all = lines(folder.path() / "metrics.jsonl");
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].dump(),
            R"({"step":1,"loss":5.5,"learning_rate":0.001,"grad_norm":0.25,"loss_scale":2.0,)"
            R"("skipped":false,"tokens":2048,"tokens_per_second":4096.0,"step_seconds":0.5})");
  EXPECT_EQ(all[1]["validation_loss"], 4.5);
  EXPECT_EQ(all[1]["validation_bits_per_byte"], 2.5);
}

TEST(MetricsFile, WhatIsNotFiniteIsNull) {
  const TemporaryFolder folder;
  MetricsFile metrics(folder.path() / "metrics.jsonl", 0);
  StepResult result = step(1);
  result.loss = NAN;
  result.grad_norm = INFINITY;
  result.skipped = true;
  metrics.write(result, 1, 1, 1, std::nullopt);
  const auto all = lines(folder.path() / "metrics.jsonl");
  EXPECT_TRUE(all[0]["loss"].is_null());
  EXPECT_TRUE(all[0]["grad_norm"].is_null());
  EXPECT_EQ(all[0]["skipped"], true);
}

TEST(MetricsFile, AResumedRunHasEachStepOnce) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "metrics.jsonl";
  {
    MetricsFile metrics(path, 0);
    for (int64_t s = 1; s <= 5; s++) metrics.write(step(s), s, 1, 1, std::nullopt);
  }
  // Killed in the middle of a line.
  write_file_atomically(path, read_file(path) + R"({"step":6,"los)");
  {
    MetricsFile metrics(path, 3);
    metrics.write(step(4), 4, 1, 2, std::nullopt);
  }
  const auto all = lines(path);
  ASSERT_EQ(all.size(), 4u);
  for (size_t i = 0; i < 4; i++) EXPECT_EQ(all[i]["step"], i + 1);
  EXPECT_EQ(all[3]["step_seconds"], 2);
}

TEST(MetricsFile, AFolderThatIsNotThereIsAnError) {
  const TemporaryFolder folder;
  EXPECT_THROW(MetricsFile(folder.path() / "none" / "metrics.jsonl", 0), DataError);
}

}  // namespace
}  // namespace lockstep
