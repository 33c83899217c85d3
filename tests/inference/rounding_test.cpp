#include "inference/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "core/check.h"
#include "core/thread_pool.h"
#include "model/quantization.h"

namespace lockstep {
namespace {

using kernels::QuantizedMatrix;

constexpr int64_t kOutputs = 19, kInputs = 96;  // rows that are no multiple of a block's

std::vector<float> random_weights(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.01f, 0.1f);
  std::vector<float> weights(kOutputs * kInputs);
  for (float& weight : weights) weight = normal(random);
  return weights;
}

Tensor tensor(std::vector<float>& weights) {
  return {weights.data(), DType::fp32, {kOutputs, kInputs}};
}

// H of `count` inputs that have a few directions in common, as activations do.
std::vector<double> correlated_hessian(int count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  constexpr int kDirections = 8;
  std::vector<double> directions(kDirections * kInputs), hessian(kInputs * kInputs);
  for (double& value : directions) value = normal(random);
  for (int k = 0; k < count; k++) {
    std::vector<double> x(kInputs);
    for (double& value : x) value = 0.3 * normal(random);
    for (int d = 0; d < kDirections; d++) {
      const double share = normal(random);
      for (int64_t i = 0; i < kInputs; i++) x[i] += share * directions[d * kInputs + i];
    }
    for (int64_t i = 0; i < kInputs; i++) {
      for (int64_t j = 0; j < kInputs; j++) hessian[i * kInputs + j] += x[i] * x[j];
    }
  }
  return hessian;
}

struct Rounded {
  QuantizedBuffer buffer;
  std::vector<uint8_t> q;  // (O, I)

  template <class F>
  Rounded(const Quantization& quantization, F round)
      : buffer({kOutputs, kInputs}, quantization), q(kOutputs * kInputs) {
    round(buffer.matrix());
    for (int64_t o = 0; o < kOutputs; o++) unpack_row(buffer.matrix(), o, &q[o * kInputs]);
  }
  double scale(int64_t o, int64_t i) const {
    const QuantizedMatrix& m = buffer.matrix();
    return m.scales[o * m.groups() + i / m.group_size];
  }
  double value(int64_t o, int64_t i) const {
    const QuantizedMatrix& m = buffer.matrix();
    return scale(o, i) * (q[o * kInputs + i] - m.zeros[o * m.groups() + i / m.group_size]);
  }
};

Rounded nearest(std::vector<float>& weights, const Quantization& quantization) {
  return {quantization,
          [&](const QuantizedMatrix& out) { round_to_nearest(out, tensor(weights)); }};
}
Rounded for_inputs(std::vector<float>& weights, const Quantization& quantization,
                   const std::vector<double>& hessian) {
  return {quantization,
          [&](const QuantizedMatrix& out) { round_for_inputs(out, tensor(weights), hessian); }};
}

TEST(RoundToNearest, IsWithinHalfAStepAndKeepsZero) {
  for (const int bits : {8, 4}) {
    std::vector<float> weights = random_weights(1);
    for (int64_t i = 32; i < 64; i++) weights[i] = std::abs(weights[i]);       // none below zero
    for (int64_t i = 64; i < 96; i++) weights[i] = -0.5f;                      // all alike
    for (int64_t i = 0; i < kInputs; i += 7) weights[kInputs + i] = 0;         // some zero
    for (int64_t i = 0; i < kInputs; i++) weights[2 * kInputs + i] = 0;        // all zero
    for (int64_t i = 0; i < kInputs; i++) weights[3 * kInputs + i] *= 1e-30f;  // tiny
    const Rounded rounded = nearest(weights, {bits, 32});
    for (int64_t o = 0; o < kOutputs; o++) {
      for (int64_t i = 0; i < kInputs; i++) {
        const float weight = weights[o * kInputs + i];
        // Half a step, and what the scale's own rounding makes of up to 255 steps.
        const double bound = rounded.scale(o, i) * (0.5 + 255 * 0x1p-23);
        ASSERT_NEAR(rounded.value(o, i), weight, bound) << o << ", " << i;
        if (weight == 0) {
          ASSERT_EQ(rounded.value(o, i), 0) << o << ", " << i;
        }
      }
      // A group of 32 normal numbers of deviation 0.1 spans less than 10 deviations.
      EXPECT_LT(rounded.scale(o, 0), 1.0 / ((1 << bits) - 1)) << o;
    }
  }
}

TEST(RoundToNearest, RefusesWhatIsNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> weights = random_weights(2);
    weights[1000] = bad;
    EXPECT_THROW(nearest(weights, {4, 32}), DataError);
    EXPECT_THROW(for_inputs(weights, {4, 32}, correlated_hessian(50, 1)), DataError);
  }
}

// The algorithm as the paper states it, by the inverse of H in float64: after each weight the
// others are updated, and its row and column leave the inverse.
std::vector<double> inverse(std::vector<double> a) {
  std::vector<double> b(a.size());
  for (int64_t i = 0; i < kInputs; i++) b[i * kInputs + i] = 1;
  for (int64_t i = 0; i < kInputs; i++) {
    const double pivot = a[i * kInputs + i];
    for (int64_t j = 0; j < kInputs; j++) a[i * kInputs + j] /= pivot, b[i * kInputs + j] /= pivot;
    for (int64_t k = 0; k < kInputs; k++) {
      const double factor = k == i ? 0 : a[k * kInputs + i];
      for (int64_t j = 0; j < kInputs; j++) {
        a[k * kInputs + j] -= factor * a[i * kInputs + j];
        b[k * kInputs + j] -= factor * b[i * kInputs + j];
      }
    }
  }
  return b;
}

std::vector<int> gptq_row(const float* weights, std::vector<double> h, int bits,
                          int64_t group_size) {
  double mean = 0;
  for (int64_t i = 0; i < kInputs; i++) mean += h[i * kInputs + i] / kInputs;
  for (int64_t i = 0; i < kInputs; i++) h[i * kInputs + i] += 0.01 * mean;
  std::vector<double> w(weights, weights + kInputs), inv = inverse(h);
  std::vector<int> q;
  double scale = 0, zero = 0;
  for (int64_t i = 0; i < kInputs; i++) {
    if (i % group_size == 0) {
      double least = 0, most = 0;
      for (int64_t k = i; k < i + group_size; k++) {
        least = std::min(least, w[k]), most = std::max(most, w[k]);
      }
      scale = (most - least) / ((1 << bits) - 1);
      zero = std::round(-least / scale);
    }
    q.push_back(
        static_cast<int>(std::clamp(std::round(w[i] / scale) + zero, 0.0, std::exp2(bits) - 1)));
    const double error = (w[i] - scale * (q.back() - zero)) / inv[i * kInputs + i];
    for (int64_t j = i + 1; j < kInputs; j++) w[j] -= error * inv[i * kInputs + j];
    const std::vector<double> before = inv;
    for (int64_t j = 0; j < kInputs; j++) {
      for (int64_t k = 0; k < kInputs; k++) {
        inv[j * kInputs + k] -=
            before[j * kInputs + i] * before[i * kInputs + k] / before[i * kInputs + i];
      }
    }
  }
  return q;
}

// Equal numbers: a weight would have to lie within a fp32 rounding of the middle between two.
TEST(RoundForInputs, IsThePapersAlgorithm) {
  std::vector<float> weights = random_weights(3);
  const std::vector<double> hessian = correlated_hessian(200, 2);
  for (const Quantization& quantization : {Quantization{4, 32}, Quantization{8, 32}}) {
    const Rounded rounded = for_inputs(weights, quantization, hessian);
    for (int64_t o = 0; o < kOutputs; o++) {
      const std::vector<int> want = gptq_row(&weights[o * kInputs], hessian, quantization.bits, 32);
      for (int64_t i = 0; i < kInputs; i++) {
        ASSERT_EQ(rounded.q[o * kInputs + i], want[i])
            << quantization.bits << ": " << o << ", " << i;
      }
    }
  }
}

double output_error(const Rounded& rounded, const std::vector<float>& weights,
                    const std::vector<double>& hessian) {
  double sum = 0;
  for (int64_t o = 0; o < kOutputs; o++) {
    for (int64_t i = 0; i < kInputs; i++) {
      for (int64_t j = 0; j < kInputs; j++) {
        sum += (weights[o * kInputs + i] - rounded.value(o, i)) * hessian[i * kInputs + j] *
               (weights[o * kInputs + j] - rounded.value(o, j));
      }
    }
  }
  return sum;
}

TEST(RoundForInputs, LeavesASmallerErrorOfTheOutputs) {
  std::vector<float> weights = random_weights(4);
  const std::vector<double> hessian = correlated_hessian(200, 5);
  const double plain = output_error(nearest(weights, {4, 32}), weights, hessian);
  EXPECT_LT(output_error(for_inputs(weights, {4, 32}, hessian), weights, hessian), 0.5 * plain);
}

TEST(RoundForInputs, OfInputsWithoutCorrelationIsRoundingToNearest) {
  std::vector<float> weights = random_weights(6);
  std::vector<double> identity(kInputs * kInputs);
  for (int64_t i = 0; i < kInputs; i++) identity[i * kInputs + i] = 3;
  const std::vector<double> none(kInputs * kInputs);  // a layer that saw nothing but zeros
  EXPECT_EQ(for_inputs(weights, {4, 32}, identity).q, nearest(weights, {4, 32}).q);
  EXPECT_EQ(for_inputs(weights, {4, 32}, none).q, nearest(weights, {4, 32}).q);
}

TEST(RoundForInputs, DoesNotDependOnThreads) {
  std::vector<float> weights = random_weights(7);
  const std::vector<double> hessian = correlated_hessian(100, 8);
  const std::vector<uint8_t> one = for_inputs(weights, {4, 32}, hessian).q;
  set_num_threads(3);
  EXPECT_EQ(for_inputs(weights, {4, 32}, hessian).q, one);
  set_num_threads(1);
}

}  // namespace
}  // namespace lockstep
