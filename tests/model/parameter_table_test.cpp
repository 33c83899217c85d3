#include "model/parameter_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/thread_pool.h"

namespace lockstep {
namespace {

ModelConfig small(Family family, bool tied) {
  ModelConfig config = family_defaults(family);
  config.vocab_size = 97;
  config.context_length = 32;
  config.num_layers = 2;
  config.hidden_size = 48;
  config.num_heads = 6;
  config.num_kv_heads = family == Family::gpt2 ? 6 : 2;
  config.tied_embeddings = tied;
  fill_in_sizes(config);
  return config;
}

std::vector<std::string> listing(const ParameterTable& table) {
  std::vector<std::string> lines;
  for (const Parameter& p : table.parameters()) {
    lines.push_back(
        fmt::format("{} {} {} {}", p.group, p.name, p.shape.to_string(), p.decay ? "decay" : "-"));
  }
  return lines;
}

TEST(ParameterTable, ListsGpt2) {
  const std::vector<std::string> expected = {
      "0 embedding.tokens.weight (97, 48) decay",
      "0 embedding.positions.weight (32, 48) decay",
      "1 layers.0.attention_norm.weight (48) -",
      "1 layers.0.attention_norm.bias (48) -",
      "1 layers.0.attention.qkv.weight (144, 48) decay",
      "1 layers.0.attention.qkv.bias (144) -",
      "1 layers.0.attention.output.weight (48, 48) decay",
      "1 layers.0.attention.output.bias (48) -",
      "1 layers.0.ffn_norm.weight (48) -",
      "1 layers.0.ffn_norm.bias (48) -",
      "1 layers.0.ffn.up.weight (192, 48) decay",
      "1 layers.0.ffn.up.bias (192) -",
      "1 layers.0.ffn.down.weight (48, 192) decay",
      "1 layers.0.ffn.down.bias (48) -",
  };
  const auto lines = listing(ParameterTable(small(Family::gpt2, true)));
  ASSERT_EQ(lines.size(), 2 + 2 * 12 + 2u);
  EXPECT_EQ(std::vector(lines.begin(), lines.begin() + 14), expected);
  EXPECT_EQ(lines[14], "2 layers.1.attention_norm.weight (48) -");
  EXPECT_EQ(lines[26], "3 final_norm.weight (48) -");
  EXPECT_EQ(lines[27], "3 final_norm.bias (48) -");
}

TEST(ParameterTable, ListsLlama) {
  const std::vector<std::string> expected = {
      "0 embedding.tokens.weight (97, 48) decay",
      "1 layers.0.attention_norm.weight (48) -",
      "1 layers.0.attention.qkv.weight (80, 48) decay",
      "1 layers.0.attention.output.weight (48, 48) decay",
      "1 layers.0.ffn_norm.weight (48) -",
      "1 layers.0.ffn.gate_up.weight (256, 48) decay",
      "1 layers.0.ffn.down.weight (48, 128) decay",
  };
  const auto lines = listing(ParameterTable(small(Family::llama, false)));
  ASSERT_EQ(lines.size(), 1 + 2 * 6 + 2u);
  EXPECT_EQ(std::vector(lines.begin(), lines.begin() + 7), expected);
  EXPECT_EQ(lines[13], "3 final_norm.weight (48) -");
  EXPECT_EQ(lines[14], "3 classifier.weight (97, 48) decay");
}

TEST(ParameterTable, HasNoGapsAndContiguousGroups) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    const ParameterTable table(small(family, false));
    int64_t end = 0;
    for (const Parameter& parameter : table.parameters()) {
      EXPECT_EQ(parameter.offset, end);
      end = parameter.end();
      const auto [first, last] = table.group_range(parameter.group);
      EXPECT_LE(first, parameter.offset);
      EXPECT_GE(last, parameter.end());
      EXPECT_EQ(&table.at(parameter.name), &parameter);
    }
    EXPECT_EQ(table.size(), end);
    EXPECT_EQ(table.num_groups(), 4);
    int64_t group_end = 0;
    for (int group = 0; group < table.num_groups(); group++) {
      EXPECT_EQ(table.group_range(group).begin, group_end);
      group_end = table.group_range(group).end;
    }
    EXPECT_EQ(group_end, end);
    EXPECT_EQ(table.find("layers.9.ffn_norm.weight"), nullptr);
    EXPECT_THROW(table.at("nothing"), std::logic_error);
    EXPECT_THROW(table.group_range(4), std::logic_error);
  }
}

TEST(ParameterTable, ViewsOneParameter) {
  const ParameterTable table(small(Family::gpt2, true));
  const Buffer flat(DType::bf16, {table.size()});
  const Parameter& bias = table.at("layers.1.ffn.up.bias");
  const Tensor view = table.view(flat.tensor(), bias);
  EXPECT_EQ(view.shape(), bias.shape);
  EXPECT_EQ(view.as<bf16>(), flat.tensor().as<bf16>() + bias.offset);
  EXPECT_THROW(table.view(flat.tensor().slice(1, table.size()), bias), std::logic_error);
}

class Initialization : public testing::Test {
 protected:
  Initialization() : config_(small(Family::gpt2, true)) {
    config_.hidden_size = 192, config_.ffn_size = 768, config_.head_dim = 32;
  }
  Buffer weights(uint64_t seed) const {
    const ParameterTable table(config_);
    Buffer flat(DType::fp32, {table.size()});
    initialize(table, config_, seed, flat.tensor());
    return flat;
  }
  static bool same(const Buffer& a, const Buffer& b) {
    return std::memcmp(a.tensor().data(), b.tensor().data(), a.size_bytes()) == 0;
  }
  ModelConfig config_;
};

// With n samples the mean of normal numbers strays from 0 by s / sqrt(n), their deviation from s by
// s / sqrt(2 n): five of those are allowed. The fourth moment tells normal (3) from uniform (1.8);
// its own deviation is sqrt(96 / n).
TEST_F(Initialization, IsNormalWithGpt2sDeviations) {
  const ParameterTable table(config_);
  const Buffer flat = weights(7);
  for (const Parameter& parameter : table.parameters()) {
    const Tensor values = table.view(flat.tensor(), parameter);
    const auto n = static_cast<double>(values.size());
    double sum = 0, squares = 0, fourth = 0;
    for (int64_t i = 0; i < values.size(); i++) {
      const double x = values.as<float>()[i];
      sum += x, squares += x * x, fourth += x * x * x * x;
    }
    if (!parameter.decay) {
      EXPECT_EQ(sum, parameter.name.ends_with(".bias") ? 0 : n) << parameter.name;
      continue;
    }
    const bool residual = parameter.name.find("attention.output") != std::string::npos ||
                          parameter.name.find("ffn.down") != std::string::npos;
    const double deviation = residual ? 0.02 / std::sqrt(2.0 * 2) : 0.02;
    EXPECT_NEAR(sum / n, 0, 5 * deviation / std::sqrt(n)) << parameter.name;
    EXPECT_NEAR(std::sqrt(squares / n), deviation, 5 * deviation / std::sqrt(2 * n))
        << parameter.name;
    EXPECT_NEAR(fourth / n / std::pow(squares / n, 2), 3, 5 * std::sqrt(96 / n)) << parameter.name;
  }
}

TEST_F(Initialization, DependsOnTheSeedAlone) {
  const Buffer one = weights(7);
  set_num_threads(3);
  EXPECT_TRUE(same(one, weights(7)));
  set_num_threads(1);
  EXPECT_FALSE(same(one, weights(8)));
  EXPECT_FALSE(same(one, weights(7 + (uint64_t{1} << 40))));
}

TEST_F(Initialization, GivesEachParameterNumbersOfItsOwn) {
  const ParameterTable table(config_);
  const Buffer flat = weights(7);
  const auto* a = table.view(flat.tensor(), table.at("layers.0.ffn.up.weight")).as<float>();
  const auto* b = table.view(flat.tensor(), table.at("layers.1.ffn.up.weight")).as<float>();
  EXPECT_NE(a[0], b[0]);
  EXPECT_NE(a[0], a[4]);
}

}  // namespace
}  // namespace lockstep
