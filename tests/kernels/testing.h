#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"

// What the tests of kernels share.
namespace lockstep::kernels::tests {

struct Size {
  int64_t rows, cols;
};
// Single values, tails shorter than a vector, more rows than a block, long rows.
inline constexpr Size kSizes[] = {{1, 1}, {3, 7}, {70, 64}, {5, 1000}, {2, 4096}};

// Relative error of rounding once to nearest: 2^-p for p bits of significand.
inline constexpr double kRounding = 0x1p-24;  // fp32
template <class T>
inline constexpr double kStorageRounding = std::is_same_v<T, float>  ? 0x1p-24
                                           : std::is_same_v<T, bf16> ? 0x1p-8
                                                                     : 0x1p-11;
// Half the spacing of fp16's subnormals; the others' are beyond notice.
template <class T>
inline constexpr double kStorageFloor = std::is_same_v<T, fp16> ? 0x1p-25 : 0x1p-130;

// Error of storing `value`.
template <class T>
double storage_error(double value) {
  return std::abs(value) * kStorageRounding<T> + kStorageFloor<T>;
}

// Relative error of a sum of n terms by sum_terms, against the sum of magnitudes: four quarters, in
// at least four lanes each, so that a term passes through n / 16 additions and the few that join.
inline double row_sum_error(int64_t n) { return (static_cast<double>(n) / 16 + 8) * kRounding; }

template <class T>
T rounded(float x) {
  if constexpr (std::is_same_v<T, int32_t>) {
    return static_cast<int32_t>(x);
  } else {
    return from_float<T>(x);
  }
}

// The values as a tensor of that shape.
template <class T>
Tensor tensor(std::vector<T>& values, Shape shape) {
  if (values.empty()) values.resize(1);  // a tensor without elements is not an absent one
  return {values.data(), kDTypeOf<T>, shape};
}

template <class T>
std::string bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// Values of a tensor, with a margin behind them that must stay as it was.
template <class T>
class Values {
 public:
  explicit Values(Shape shape, float fill = 0)
      : shape_(shape), data_(shape.size() + kMargin, rounded<T>(fill)) {
    std::fill_n(data_.end() - kMargin, kMargin, rounded<T>(kMarker));
  }
  static Values normal(Shape shape, unsigned seed, float mean = 0, float deviation = 1) {
    Values values(shape);
    std::mt19937 random(seed);
    std::normal_distribution<float> distribution(mean, deviation);
    for (int64_t i = 0; i < shape.size(); i++) values.set(i, distribution(random));
    return values;
  }
  Values(const Values&) = default;
  Values& operator=(const Values&) = default;
  ~Values() {
    for (int i = 1; i <= kMargin; i++) {
      EXPECT_EQ(static_cast<float>((*this)[size() + kMargin - i]), kMarker)
          << "written beyond its end";
    }
  }

  Tensor tensor() { return {data_.data(), kDTypeOf<T>, shape_}; }
  int64_t size() const { return shape_.size(); }
  double operator[](int64_t i) const { return to_float(data_[i]); }
  void set(int64_t i, float value) { data_[i] = rounded<T>(value); }
  std::string bytes(int64_t begin, int64_t end) const {
    return {reinterpret_cast<const char*>(data_.data() + begin),
            static_cast<size_t>(end - begin) * sizeof(T)};
  }
  std::string bytes() const { return bytes(0, size()); }
  std::vector<double> doubles(int64_t begin, int64_t end) const {
    std::vector<double> out;
    for (int64_t i = begin; i < end; i++) out.push_back((*this)[i]);
    return out;
  }
  std::vector<double> doubles() const { return doubles(0, size()); }

 private:
  static constexpr int kMargin = 16;
  static constexpr float kMarker = 24576.0f;  // exact in every type
  Shape shape_;
  std::vector<T> data_;
};

// d f / d values[i], by central differences: error O(h^2) = 1e-10 for functions of order 1.
template <class F>
double derivative(std::vector<double> values, int64_t i, F f) {
  constexpr double kStep = 1e-5;
  const double at = values[i];
  values[i] = at + kStep;
  const double above = f(values);
  values[i] = at - kStep;
  return (above - f(values)) / (2 * kStep);
}

// run() returns bytes that must not depend on the number of threads.
template <class F>
void expect_same_bits_for_any_threads(F run) {
  set_num_threads(1);
  const std::string one = run();
  for (int threads : {2, 3}) {
    set_num_threads(threads);
    EXPECT_TRUE(run() == one) << threads << " threads";
  }
  set_num_threads(1);
}

using FloatTypes = testing::Types<float, bf16, fp16>;

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

}  // namespace lockstep::kernels::tests
