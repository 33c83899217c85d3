#include "trainer/profile_report.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace lockstep {
namespace {

using testing::HasSubstr;
using Kind = Span::Kind;

Span span(Kind kind, Work work, int64_t begin, int64_t end, int64_t parent, int64_t number = -1) {
  return {kind, work, number, begin, end, parent};
}

// Two steps of 1000 ns: a forward of 600, with a product of 400, in which a copy takes 100 and
// waiting for threads 40; then a wait of 200. Beside them a reduction.
std::vector<Track> two_steps() {
  Track training{"training", true, {}}, reduction{"reduction", false, {}};
  for (const int64_t at : {0, 5000}) {
    const auto first = static_cast<int64_t>(training.spans.size());
    const Work product{"product", 800, 4000, Unit::tensor, {5, 10, 40}};
    training.spans.push_back(span(Kind::stage, {"step"}, at, at + 1000, -1, 1));
    training.spans.push_back(span(Kind::stage, {"forward"}, at + 100, at + 700, first));
    training.spans.push_back(span(Kind::work, product, at + 200, at + 600, first + 1));
    training.spans.push_back(span(Kind::work, {"copy", 300}, at + 300, at + 400, first + 2));
    training.spans.push_back(span(Kind::idle, {"wait_for_threads"}, at + 560, at + 600, first + 2));
    training.spans.push_back(span(Kind::wait, {"wait_for_peers"}, at + 750, at + 950, first));
    reduction.spans.push_back(
        span(Kind::work, {"all_to_all", 64, 0, Unit::link}, at + 100, at + 900, -1));
  }
  return {training, reduction};
}

const ProfileTotals::Row& row(const ProfileTotals& totals, const std::string& name) {
  for (const auto& row : totals.rows) {
    if (row.name == name) return row;
  }
  throw std::out_of_range(name);
}

const ProfileTotals::Stage& stage(const ProfileTotals& totals, const std::string& path) {
  for (const auto& stage : totals.stages) {
    if (stage.path == path) return stage;
  }
  throw std::out_of_range(path);
}

TEST(ProfileTotals, EachNanosecondIsInOneRow) {
  const ProfileTotals totals = profile_totals(two_steps());
  EXPECT_EQ(totals.steps, 2);
  EXPECT_DOUBLE_EQ(totals.step_seconds, 2000e-9);
  ASSERT_EQ(totals.rows.size(), 4u);
  const auto& product = row(totals, "product 5x10x40");
  EXPECT_EQ(product.calls, 2);
  EXPECT_DOUBLE_EQ(product.seconds, 600e-9) << "without the copy within it";
  EXPECT_DOUBLE_EQ(product.idle_seconds, 80e-9);
  EXPECT_EQ(product.bytes, 1600);
  EXPECT_EQ(product.flops, 8000);
  EXPECT_FALSE(product.beside);
  EXPECT_DOUBLE_EQ(row(totals, "copy").seconds, 200e-9);
  EXPECT_DOUBLE_EQ(row(totals, "wait_for_peers").seconds, 400e-9);
  EXPECT_TRUE(row(totals, "all_to_all").beside);
  EXPECT_TRUE(row(totals, "all_to_all").link);

  ASSERT_EQ(totals.stages.size(), 2u);
  EXPECT_DOUBLE_EQ(stage(totals, "step").seconds, 2000e-9);
  EXPECT_DOUBLE_EQ(stage(totals, "step").own_seconds, 400e-9);
  EXPECT_DOUBLE_EQ(stage(totals, "step/forward").seconds, 1200e-9);
  EXPECT_DOUBLE_EQ(stage(totals, "step/forward").own_seconds, 400e-9);
  // Rows of the thread that computes, and what stages have for themselves, are the step.
  double sum = 0;
  for (const auto& each : totals.rows) sum += each.beside ? 0 : each.seconds;
  for (const auto& each : totals.stages) sum += each.own_seconds;
  EXPECT_DOUBLE_EQ(sum, totals.step_seconds);
}

TEST(ProfileTotals, AddUpOverWorkers) {
  const ProfileTotals one = profile_totals(two_steps());
  ProfileTotals two = profile_totals_from_json(to_json(one));
  two.add(one);
  EXPECT_EQ(two.workers, 2);
  EXPECT_EQ(two.steps, 2);
  EXPECT_DOUBLE_EQ(two.step_seconds, 2 * one.step_seconds);
  ASSERT_EQ(two.rows.size(), one.rows.size());
  for (const auto& of_one : one.rows) {
    const auto& of_two = row(two, of_one.name);
    EXPECT_EQ(of_two.calls, 2 * of_one.calls);
    EXPECT_DOUBLE_EQ(of_two.seconds, 2 * of_one.seconds);
    EXPECT_EQ(of_two.flops, 2 * of_one.flops);
    EXPECT_EQ(of_two.link, of_one.link);
  }
  EXPECT_DOUBLE_EQ(stage(two, "step/forward").own_seconds, 800e-9);
  // And the table shows a worker's mean.
  const MachineRates machine{1e12, 1e10};
  const auto rows_of = [&](const ProfileTotals& totals) {
    const std::string text = profile_table(totals, machine);
    return text.substr(text.find("calls"));
  };
  EXPECT_EQ(rows_of(two), rows_of(one));
}

TEST(ProfileTable, SharesAreOfTheSlowerLimit) {
  // The product: 4000 FLOPs in 300 ns are 13.3 GFLOP/s; its 800 bytes 2.7 GB/s.
  const auto line_of = [](const MachineRates& machine, const std::string& name) {
    const std::string text = profile_table(profile_totals(two_steps()), machine);
    const size_t begin = text.find(name);
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  const std::string by_products = line_of({40e9, 100e9}, "product 5x10x40");
  for (const char* part : {" 30.0 ", " 13.3 ", " 2.7 ", " 13 ", " 33 % of products"}) {
    EXPECT_THAT(by_products, HasSubstr(part));
  }
  EXPECT_THAT(line_of({400e9, 8e9}, "product 5x10x40"), HasSubstr(" 33 % of memory"));
  EXPECT_THAT(line_of({40e9, 100e9}, "in no kernel"), HasSubstr(" 40.0"));
  EXPECT_THAT(line_of({40e9, 100e9}, "step"), HasSubstr(" 100.0"));
}

TEST(Trace, IsOneThatViewersOpen) {
  const auto events =
      nlohmann::json::parse(fmt::format("[{}]", trace_events(two_steps(), 3, "node \"7\"")));
  int spans = 0;
  std::vector<std::string> names;
  for (const auto& event : events) {
    EXPECT_EQ(event.at("pid"), 3);
    if (event.at("ph") == "M") {
      names.push_back(event.at("args").at("name"));
      continue;
    }
    EXPECT_EQ(event.at("ph"), "X");
    EXPECT_GE(event.at("dur").get<double>(), 0);
    spans++;
  }
  EXPECT_EQ(spans, 14);
  EXPECT_THAT(names, testing::ElementsAre("worker 3 on node \"7\"", "training", "reduction"));
  const auto& product = events.at(4);
  EXPECT_EQ(product.at("name"), "product 5x10x40");
  EXPECT_EQ(product.at("cat"), "kernel");
  EXPECT_EQ(product.at("ts"), 0.2);  // microseconds
  EXPECT_EQ(product.at("dur"), 0.4);
  EXPECT_EQ(product.at("args").at("GFLOP/s"), 10);
}

}  // namespace
}  // namespace lockstep
