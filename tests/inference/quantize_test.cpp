#include "inference/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>

#include "core/check.h"
#include "data/prepare.h"
#include "inference/comparison.h"
#include "inference/generator.h"
#include "inference/rounding.h"
#include "model/decoder.h"
#include "tests/inference/golden.h"

namespace lockstep {
namespace {

using testing::Golden;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

// A model of random weights whose sizes can be quantized, on the text of the golden data.
class QuantizeOf : public ::testing::TestWithParam<Family> {
 protected:
  QuantizeOf() {
    Golden golden("gpt2");
    ModelConfig config = family_defaults(GetParam());
    config.vocab_size = 257;
    config.context_length = 40;
    config.num_layers = 2;
    config.hidden_size = 64;
    config.num_heads = 4;
    config.ffn_size = 128;
    fill_in_sizes(config);
    golden.config = config;
    golden.weights.resize(ParameterTable(config).size());
    const ParameterTable table(config);
    std::mt19937 random(1);
    for (const Parameter& parameter : table.parameters()) {
      const bool gain = parameter.name.ends_with("norm.weight");
      std::normal_distribution<float> normal(gain ? 1 : 0.01f, 0.15f);
      for (int64_t i = parameter.offset; i < parameter.end(); i++) {
        golden.weights[i] = normal(random);
      }
    }
    whole_.emplace(golden.checkpoint(folder_ / "run"));

    std::ofstream(folder_ / "text.txt") << golden.index.at("text").get<std::string>();
    PrepareConfig prepared;
    prepared.inputs = {folder_ / "text.txt"};
    prepared.output = folder_ / "data";
    prepared.tokenizer = "bytes";
    prepared.validation_fraction = 0;
    prepare(prepared);
    dataset_.emplace(Dataset::open(prepared.output));
  }
  const TokenStream& split() const { return dataset_->split("train"); }
  const ModelConfig& config() const { return whole_->info().model; }

  Checkpoint quantized(const Quantization& quantization) {
    const auto path = folder_ / (std::to_string(files_++) + ".h5");
    const auto tokens = spread_windows(split(), config().context_length, 200);
    write_quantized(*whole_, quantization, quantize(*whole_, quantization, tokens), path);
    return Checkpoint::open(path);
  }
  Comparison compared(const Checkpoint& after, int64_t max_tokens = 0) const {
    return compare(config(), Weights(*whole_, DType::fp32), Weights(after, DType::fp32), split(),
                   max_tokens);
  }

  TemporaryFolder folder_;
  std::optional<Checkpoint> whole_;
  std::optional<Dataset> dataset_;
  int files_ = 0;
};

// The weights that the numbers stand for, as a checkpoint of whole ones.
Checkpoint dequantized(const Checkpoint& whole, const Checkpoint& quantized,
                       const std::filesystem::path& run) {
  Golden golden("gpt2");
  golden.config = whole.info().model;
  golden.weights.resize(whole.table().size());
  whole.read(FlatKind::weights, 0,
             Tensor(golden.weights.data(), DType::fp32, {whole.table().size()}));
  for (const Parameter& parameter : whole.table().parameters()) {
    if (!is_quantized(parameter)) continue;
    const QuantizedBuffer buffer(parameter.shape, *quantized.info().quantization);
    const kernels::QuantizedMatrix& m = buffer.matrix();
    quantized.read(parameter, m);
    std::vector<uint8_t> q(m.inputs);
    for (int64_t o = 0; o < m.outputs; o++) {
      unpack_row(m, o, q.data());
      for (int64_t i = 0; i < m.inputs; i++) {
        const int64_t group = o * m.groups() + i / m.group_size;
        golden.weights[parameter.offset + o * m.inputs + i] =
            m.scales[group] * static_cast<float>(q[i] - m.zeros[group]);
      }
    }
  }
  return golden.checkpoint(run);
}

// Logits of order 10, of sums of up to 128 products in fp32, through two layers: 1e-3.
TEST_P(QuantizeOf, TheForwardPassIsThatOfTheWeightsTheNumbersStandFor) {
  const Checkpoint after = quantized({4, 32});
  const Checkpoint same = dequantized(*whole_, after, folder_ / "dequantized");
  Generator quantized_generator(after, DType::fp32), whole_generator(same, DType::fp32);
  for (const int64_t count : {1, 7, 40}) {
    std::vector<int32_t> tokens(count);
    split().copy(3, count, tokens.data());
    const auto got = quantized_generator.next_token_logits(tokens);
    const auto want = whole_generator.next_token_logits(tokens);
    for (size_t v = 0; v < want.size(); v++) ASSERT_NEAR(got[v], want[v], 1e-3) << count;
  }
}

TEST_P(QuantizeOf, CalibrationLeavesLessDivergence) {
  const double eight = compared(quantized({8, 32})).kl_divergence;
  const double plain = compared(quantized({4, 32})).kl_divergence;
  const double calibrated = compared(quantized({4, 32, true})).kl_divergence;
  EXPECT_LT(calibrated, 0.5 * plain);
  EXPECT_LT(eight, 0.1 * calibrated);
}

// Layer 1 is rounded for what it gets from layer 0 as quantized. That is what a model of layer 0
// alone has for hidden states, with layer 1's norm for its last.
TEST_P(QuantizeOf, ALayerIsRoundedForWhatTheQuantizedOnesBeforeItGiveIt) {
  const Quantization quantization{4, 32, true};
  const int64_t length = config().context_length, width = config().hidden_size;
  const auto tokens = spread_windows(split(), length, 200);
  const auto matrices = quantize(*whole_, quantization, tokens);
  const Weights weights(*whole_, DType::fp32);
  ModelConfig first_layer = config();
  first_layer.num_layers = 1;
  ModelParameters parameters = weights.parameters();
  const LayerParameters second = parameters.layers[1];
  parameters.layers.resize(1);
  parameters.layers[0].quantized = {matrices[0].matrix(), matrices[1].matrix(),
                                    matrices[2].matrix(), matrices[3].matrix()};
  parameters.final_gain = second.attention_norm_gain;
  parameters.final_bias = second.attention_norm_bias;
  Decoder decoder(first_layer, parameters);
  std::vector<double> hessian(width * width);
  const Buffer hidden(DType::fp32, {length, width});
  for (size_t at = 0; at < tokens.size(); at += length) {
    KvPages pages(first_layer, 4, DType::fp32);
    KvSequence sequence(pages);
    const NewTokens window{&sequence, std::span(tokens).subspan(at, length), length};
    decoder.forward(std::span(&window, 1), kernels::Rows::in_tiles, hidden.tensor());
    const auto* x = hidden.tensor().as<float>();
    for (int64_t t = 0; t < length; t++) {
      for (int64_t i = 0; i < width * width; i++) {
        hessian[i] += double{x[t * width + i / width]} * x[t * width + i % width];
      }
    }
  }
  const QuantizedBuffer want(second.qkv_weight.shape(), quantization);
  round_for_inputs(want.matrix(), second.qkv_weight, hessian);
  const kernels::QuantizedMatrix& got = matrices[4].matrix();
  int64_t equal = 0;
  std::vector<uint8_t> a(width), b(width);
  for (int64_t o = 0; o < got.outputs; o++) {
    unpack_row(got, o, a.data());
    unpack_row(want.matrix(), o, b.data());
    for (int64_t i = 0; i < width; i++) equal += a[i] == b[i];
  }
  // Sums of fp32 differ in their last bits, which moves a weight that lies between two numbers.
  EXPECT_GT(static_cast<double>(equal), 0.99 * static_cast<double>(got.outputs * width));
}

TEST_P(QuantizeOf, ComparesAModelWithItself) {
  const Comparison all = compared(*whole_);
  EXPECT_EQ(all.tokens, split().size() - 1);
  EXPECT_EQ(all.kl_divergence, 0);
  EXPECT_EQ(all.top_1_agreement, 1);
  EXPECT_EQ(all.perplexity_before, all.perplexity_after);
  EXPECT_EQ(compared(*whole_, 41).tokens, 80);  // in whole windows
}

// The definitions, on the logits that generation has.
TEST_P(QuantizeOf, TheFiguresAreThoseOfTheirDefinitions) {
  const Checkpoint after = quantized({4, 64});
  const Comparison got = compared(after, 40);
  Generator p_model(*whole_, DType::fp32), q_model(after, DType::fp32);
  std::vector<int32_t> tokens(41);
  split().copy(0, 41, tokens.data());
  double loss_p = 0, loss_q = 0, divergence = 0, agreed = 0;
  for (size_t t = 1; t <= 40; t++) {
    const auto p = p_model.next_token_logits(std::span(tokens).first(t));
    const auto q = q_model.next_token_logits(std::span(tokens).first(t));
    double sum_p = 0, sum_q = 0;
    for (size_t v = 0; v < p.size(); v++) sum_p += std::exp(p[v]), sum_q += std::exp(q[v]);
    loss_p += std::log(sum_p) - p[tokens[t]];
    loss_q += std::log(sum_q) - q[tokens[t]];
    for (size_t v = 0; v < p.size(); v++) {
      const double probability = std::exp(p[v]) / sum_p;
      divergence += probability * std::log(probability / (std::exp(q[v]) / sum_q));
    }
    agreed += std::max_element(p.begin(), p.end()) - p.begin() ==
              std::max_element(q.begin(), q.end()) - q.begin();
  }
  EXPECT_NEAR(got.perplexity_before, std::exp(loss_p / 40), 1e-4 * got.perplexity_before);
  EXPECT_NEAR(got.perplexity_after, std::exp(loss_q / 40), 1e-4 * got.perplexity_after);
  EXPECT_NEAR(got.kl_divergence, divergence / 40, 1e-3 * got.kl_divergence);
  EXPECT_NEAR(got.top_1_agreement, agreed / 40, 1e-9);
  EXPECT_GT(got.kl_divergence, 0.01);
  EXPECT_LT(got.top_1_agreement, 1);
}

TEST_P(QuantizeOf, IsNotForWhatIsQuantizedAlready) {
  const Checkpoint once = quantized({8, 32});
  EXPECT_THROW(quantize(once, {4, 32}, {}), DataError);
  EXPECT_THROW(quantize(*whole_, {4, 128}, {}), UsageError);  // 64 inputs
}

TEST_P(QuantizeOf, IsNotForGpus) {
  const Checkpoint after = quantized({8, 32});
  try {
    const Weights weights(after, DType::fp32, Device::cuda);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("on the CPU only: add --device cpu"));
  }
}

// The tokens that calibration takes: whole windows from the beginning to the end of the split.
TEST_P(QuantizeOf, WindowsAreSpreadOverTheSplit) {
  const int64_t size = split().size();  // 231
  std::vector<int32_t> all(size);
  split().copy(0, size, all.data());
  const auto few = spread_windows(split(), 10, 21);  // three windows
  ASSERT_EQ(few.size(), 30u);
  for (int64_t w = 0; w < 3; w++) {
    EXPECT_TRUE(
        std::equal(few.begin() + w * 10, few.begin() + (w + 1) * 10, all.begin() + w * (size / 3)));
  }
  EXPECT_EQ(spread_windows(split(), 40, 1'000'000).size(), 200u);
  EXPECT_THROW(spread_windows(split(), 1000, 10), DataError);
}

INSTANTIATE_TEST_SUITE_P(, QuantizeOf, ::testing::Values(Family::gpt2, Family::llama),
                         [](const auto& param) { return std::string(name(param.param)); });

}  // namespace
}  // namespace lockstep
