#include "kernels/ordered_sum.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace lockstep::kernels::tests {
namespace {

// Numbers of all sizes, so that every order of additions has other bits.
template <class T>
std::vector<std::vector<T>> random_terms(int count, int64_t n) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<std::vector<T>> terms(static_cast<size_t>(count));
  for (auto& term : terms) {
    for (int64_t i = 0; i < n; i++) {
      term.push_back(from_float<T>(std::ldexp(normal(random), static_cast<int>(random() % 12))));
    }
  }
  return terms;
}

template <class T>
std::vector<Tensor> views(std::vector<std::vector<T>>& terms) {
  std::vector<Tensor> tensors;
  for (auto& term : terms) {
    tensors.emplace_back(term.data(), kDTypeOf<T>, Shape{static_cast<int64_t>(term.size())});
  }
  return tensors;
}

// Equality: each addition is one rounding to fp32, and to T where it is kept.
template <class T>
void check(int64_t n) {
  auto terms = random_terms<T>(4, n);
  const auto start = terms;
  const auto tensors = views(terms);
  const std::vector<Addition> additions{{0, 1}, {2, 3}, {0, 2}};
  std::vector<float> out(static_cast<size_t>(n), -1);
  Stream stream;
  ordered_sum(Tensor(out.data(), DType::fp32, {n}), tensors, additions, stream);
  for (size_t i = 0; i < out.size(); i++) {
    const T low = from_float<T>(to_float(start[0][i]) + to_float(start[1][i]));
    const T high = from_float<T>(to_float(start[2][i]) + to_float(start[3][i]));
    ASSERT_EQ(out[i], to_float(low) + to_float(high)) << i;
    ASSERT_EQ(to_float(terms[0][i]), to_float(low));
    ASSERT_EQ(to_float(terms[1][i]), to_float(start[1][i]));
  }
  terms = start;
  ordered_sum({}, views(terms), additions, stream);
  for (size_t i = 0; i < out.size(); i++) {
    ASSERT_EQ(to_float(terms[0][i]), to_float(from_float<T>(out[i])));
  }
}

TEST(OrderedSum, AddsInTheGivenOrder) {
  for (const int64_t n : {1, 7, 63, 1000, 40001}) {
    check<float>(n);
    check<bf16>(n);
  }
}

TEST(OrderedSum, OfOneTermIsTheTerm) {
  auto terms = random_terms<bf16>(1, 100);
  std::vector<float> out(100);
  Stream stream;
  ordered_sum(Tensor(out.data(), DType::fp32, {100}), views(terms), {}, stream);
  for (size_t i = 0; i < 100; i++) EXPECT_EQ(out[i], to_float(terms[0][i]));
}

TEST(OrderedSum, MayWriteOverATerm) {
  auto terms = random_terms<float>(2, 100);
  const auto start = terms;
  const auto tensors = views(terms);
  Stream stream;
  ordered_sum(tensors[1], tensors, std::vector<Addition>{{0, 1}}, stream);
  for (size_t i = 0; i < 100; i++) EXPECT_EQ(terms[1][i], start[0][i] + start[1][i]);
}

}  // namespace
}  // namespace lockstep::kernels::tests
