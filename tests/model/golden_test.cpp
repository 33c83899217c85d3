#include "tests/model/golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/reduce.h"
#include "model/decoder.h"
#include "model/transformer.h"

// One step, and logits, against Hugging Face's models.
namespace lockstep {
namespace {

using testing::Golden;
using testing::TokenBatch;

class GoldenModel : public ::testing::TestWithParam<const char*> {
 protected:
  Golden golden_{std::string(LOCKSTEP_GOLDEN) + "/model", GetParam()};
};

// The largest error of a tensor relative to its largest entry.
double relative_error(const float* got, const float* want, int64_t n) {
  double largest = 0, error = 0;
  for (int64_t i = 0; i < n; i++) {
    largest = std::max(largest, std::abs(double{want[i]}));
    error = std::max(error, std::abs(double{got[i]} - double{want[i]}));
  }
  return error / largest;
}

// Both sides round sums of up to some hundred terms in fp32, a dozen one after the other: errors of
// some ten of its units of 2^-24 = 6e-8 relative to the largest entry, on each side.
constexpr double kTolerance = 1e-5;

TEST_P(GoldenModel, HasTheLossAndGradientsOfHuggingFace) {
  TokenBatch batch = golden_.batch();
  Transformer model(golden_.config,
                    {.micro_batch_size = batch.sequences(), .sequence_length = batch.length()});
  std::copy(golden_.weights.begin(), golden_.weights.end(), model.weights().as<float>());
  const auto counted = static_cast<float>(batch.counted());
  const double loss = testing::forward(model, batch.whole(), 1 / counted) / counted;
  model.backward(nullptr);
  EXPECT_NEAR(loss, golden_.loss(), kTolerance * golden_.loss());
  for (const Parameter& parameter : model.table().parameters()) {
    const Tensor got = model.table().view(model.gradients(), parameter);
    EXPECT_LT(
        relative_error(got.as<float>(), golden_.gradients.data() + parameter.offset, got.size()),
        kTolerance)
        << parameter.name;
  }
}

// The unit of rounding u is 2^-9 for bf16 and 2^-12 for fp16: an error of u / 3^(1/2) in the mean.
// A value passes about 10 roundings a layer forward, and a gradient 10 more on the way back, with 2
// to 4 outside of the layers; independent ones add up by their squares. Norms and softmax amplify:
// 4 times as much is allowed. A token's loss errs like two logits, of size 2 here, and the mean of
// n of them by n^(-1/2) of that. (Measured: a half to a third of the bounds.)
TEST_P(GoldenModel, InHalfPrecisionIsWithinItsRounding) {
  TokenBatch batch = golden_.batch();
  const auto counted = static_cast<double>(batch.counted());
  const auto layers = static_cast<double>(golden_.config.num_layers);
  constexpr float kScale = 128;  // keeps fp16 away from its subnormals
  for (const auto& [precision, unit] : {std::pair{DType::bf16, 0x1p-9}, {DType::fp16, 0x1p-12}}) {
    SCOPED_TRACE(name(precision));
    Transformer model(golden_.config, {.precision = precision,
                                       .micro_batch_size = batch.sequences(),
                                       .sequence_length = batch.length()});
    Stream stream;
    kernels::cast(model.weights(),
                  Tensor(golden_.weights.data(), DType::fp32, {model.table().size()}), stream);
    const double loss =
        testing::forward(model, batch.whole(), kScale / static_cast<float>(counted)) / counted;
    model.backward(nullptr);
    const double roundings = std::sqrt((10 * layers + 2) / 3);
    EXPECT_NEAR(loss, golden_.loss(),
                4 * unit * roundings * std::sqrt(2.0) * 2 / std::sqrt(counted));
    for (const Parameter& parameter : model.table().parameters()) {
      const Tensor got = model.table().view(model.gradients(), parameter);
      double squared_error = 0, squares = 0;
      for (int64_t i = 0; i < got.size(); i++) {
        const double want = golden_.gradients[parameter.offset + i];
        const double error = got.as<float>()[i] / kScale - want;
        squared_error += error * error;
        squares += want * want;
      }
      EXPECT_LT(std::sqrt(squared_error / squares), 4 * unit * std::sqrt((20 * layers + 4) / 3))
          << parameter.name;
    }
  }
}

// The decoder, given the prompt whole and in pieces.
TEST_P(GoldenModel, HasTheLogitsOfHuggingFace) {
  Buffer weights(DType::fp32, {static_cast<int64_t>(golden_.weights.size())});
  std::copy(golden_.weights.begin(), golden_.weights.end(), weights.tensor().as<float>());
  std::vector<int32_t> prompt = golden_.index.at("prompt");
  const auto length = static_cast<int64_t>(prompt.size());
  for (const auto& [chunk, piece] :
       {std::pair{64, length}, {7, length}, {64, int64_t{1}}, {4, 11}}) {
    Decoder decoder(golden_.config, weights.tensor(), chunk);
    KvPages pages(golden_.config, 4, DType::fp32);
    KvSequence sequence(pages);
    const Buffer hidden(DType::fp32, {length, golden_.config.hidden_size});
    const Buffer logits(DType::fp32, {length, golden_.config.vocab_size});
    for (int64_t begin = 0; begin < length; begin += piece) {
      const int64_t end = std::min(length, begin + piece);
      const NewTokens part{&sequence, std::span(prompt).subspan(begin, end - begin), end - begin};
      decoder.forward(std::span(&part, 1),
                      piece == 1 ? kernels::Rows::one_by_one : kernels::Rows::in_tiles,
                      hidden.tensor().slice(begin, end));
    }
    decoder.logits(logits.tensor(), hidden.tensor());
    EXPECT_EQ(sequence.length(), length);
    EXPECT_LT(
        relative_error(logits.tensor().as<float>(), golden_.logits.data(), logits.tensor().size()),
        kTolerance)
        << "chunks of " << chunk << ", pieces of " << piece;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModel, ::testing::Values("gpt2", "llama", "llama_tied"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace lockstep
