#include "model/quantization.h"

#include <gmock/gmock.h>

#include "core/check.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

ModelConfig config_of(Family family, int64_t hidden_size, int64_t ffn_size) {
  ModelConfig config = family_defaults(family);
  config.vocab_size = 64;
  config.context_length = 8;
  config.num_layers = 1;
  config.hidden_size = hidden_size;
  config.num_heads = 4;
  config.ffn_size = ffn_size;
  fill_in_sizes(config);
  return config;
}

std::string refusal(const Quantization& quantization, const ModelConfig& config) {
  try {
    validate(quantization, config);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(Quantization, IsOfTheLayersMatrices) {
  for (const Family family : {Family::gpt2, Family::llama}) {
    std::vector<std::string> names;
    const ParameterTable table(config_of(family, 128, 512));
    for (const Parameter& parameter : table.parameters()) {
      if (is_quantized(parameter)) names.push_back(parameter.name);
    }
    EXPECT_THAT(names, testing::ElementsAre("layers.0.attention.qkv.weight",
                                            "layers.0.attention.output.weight",
                                            family == Family::gpt2 ? "layers.0.ffn.up.weight"
                                                                   : "layers.0.ffn.gate_up.weight",
                                            "layers.0.ffn.down.weight"));
  }
}

TEST(Quantization, SizesThatDoNotFitAreNamed) {
  const ModelConfig config = config_of(Family::llama, 128, 352);  // 352 = 32 * 11
  EXPECT_EQ(refusal({8, 32}, config), "");
  EXPECT_EQ(refusal({4, 32}, config), "");
  EXPECT_EQ(
      refusal({4, 128}, config),
      "--group-size 128 does not divide the 352 inputs of layers.0.ffn.down.weight; groups of 32 "
      "do");
  EXPECT_THAT(refusal({4, 100}, config), HasSubstr("32, 64 or a multiple of 128"));
  EXPECT_THAT(refusal({4, 0}, config), HasSubstr("32, 64 or a multiple of 128"));
  EXPECT_THAT(refusal({3, 32}, config), HasSubstr("8 bits or 4, and not 3"));
  EXPECT_THAT(refusal({8, 32}, config_of(Family::gpt2, 36, 72)),
              HasSubstr("no size does for this model"));
  EXPECT_EQ(refusal({4, 128}, config_of(Family::gpt2, 128, 512)), "");
}

}  // namespace
}  // namespace lockstep
