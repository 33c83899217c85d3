#include "kernels/reduce.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/profile.h"
#include "kernels/cpu/rows.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

LOCKSTEP_CLONES double sum_of_squares_run(const float* x, int64_t n) {
  return sum_terms<double>(
      n, [=](int64_t i) __attribute__((always_inline)) {
        return static_cast<double>(x[i]) * static_cast<double>(x[i]);
      });
}

LOCKSTEP_CLONES double sum_run(const float* x, int64_t n) {
  return sum_terms<double>(
      n, [=](int64_t i) __attribute__((always_inline)) { return static_cast<double>(x[i]); });
}

// Neighbours are added up until one number is left.
double tree_sum(std::vector<double> terms) {
  while (terms.size() > 1) {
    const size_t pairs = terms.size() / 2;
    for (size_t i = 0; i < pairs; i++) terms[i] = terms[2 * i] + terms[2 * i + 1];
    if (terms.size() % 2 == 1) terms[pairs] = terms.back();
    terms.resize((terms.size() + 1) / 2);
  }
  return terms.empty() ? 0.0 : terms[0];
}

template <class Run>
double reduce(const Tensor& x, Run run) {
  const float* values = x.as<float>();
  std::vector<double> blocks((x.size() + kReduceBlock - 1) / kReduceBlock);
  parallel_for(x.size(), kReduceBlock, [&](int64_t begin, int64_t end) {
    blocks[begin / kReduceBlock] = run(values + begin, end - begin);
  });
  return tree_sum(std::move(blocks));
}

template <class To, class From>
LOCKSTEP_CLONES void cast_run(To* out, const From* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = from_float<To>(to_float(x[i]));
}

}  // namespace

void add_sum(double* total, const Tensor& x, Stream&) {
  const ProfileScope scope({"sum", bytes_of(x)});
  *total += reduce(x, sum_run);
}

void add_sums_of_squares(double* totals, const Tensor& x, const Range* ranges, int64_t count,
                         int64_t largest, Stream&) {
  double bytes = 0;
  for (int64_t r = 0; r < count; r++) {
    bytes += static_cast<double>(ranges[r].size() * size_bytes(x.dtype()));
  }
  const ProfileScope scope({"sum_of_squares", bytes});
  for (int64_t r = 0; r < count; r++) {
    CHECK(ranges[r].size() <= largest);
    totals[r] += reduce(x.slice(ranges[r].begin, ranges[r].end), sum_of_squares_run);
  }
}

void cast(const Tensor& out, const Tensor& x, Stream&) {
  CHECK(out.size() == x.size());
  const ProfileScope scope({"cast", bytes_of(out, x)});
  with_float_type(out.dtype(), [&](auto to) {
    with_float_type(x.dtype(), [&](auto from) {
      using To = typename decltype(to)::type;
      using From = typename decltype(from)::type;
      parallel_for(x.size(), kReduceBlock, [&](int64_t begin, int64_t end) {
        cast_run(out.as<To>() + begin, x.as<From>() + begin, end - begin);
      });
    });
  });
}

void set_zero(const Tensor& out, Stream&) {
  const int64_t bytes = out.size_bytes();
  const ProfileScope scope({"set_zero", bytes_of(out)});
  parallel_for(bytes, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(out.data()) + begin, 0, static_cast<size_t>(end - begin));
  });
}

}  // namespace lockstep::kernels::cpu
