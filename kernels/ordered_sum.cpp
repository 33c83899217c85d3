#include "kernels/ordered_sum.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/cpu/rows.h"

namespace lockstep::kernels::cpu {
namespace {

template <class Out, class T>
LOCKSTEP_CLONES void add_run(Out* out, const T* a, const T* b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = from_float<Out>(to_float(a[i]) + to_float(b[i]));
}

template <class T>
void sum_block(float* out, std::span<const Tensor> terms, std::span<const Addition> additions,
               int64_t begin, int64_t n) {
  const auto term = [&](int i) { return terms[static_cast<size_t>(i)].as<T>() + begin; };
  if (additions.empty()) {
    if (out != nullptr) std::transform(term(0), term(0) + n, out, [](T x) { return to_float(x); });
    return;
  }
  const size_t stored = additions.size() - (out != nullptr ? 1 : 0);
  for (const Addition& a : additions.first(stored)) {
    add_run(term(a.to), term(a.to), term(a.from), n);
  }
  if (out != nullptr) add_run(out, term(additions.back().to), term(additions.back().from), n);
}

}  // namespace

void ordered_sum(const Tensor& out, std::span<const Tensor> terms,
                 std::span<const Addition> additions, Stream&) {
  const int64_t n = terms.front().size();
  const DType dtype = terms.front().dtype();
  for (const Tensor& term : terms) CHECK(term.size() == n && term.dtype() == dtype);
  CHECK(out.empty() || (out.size() == n && out.dtype() == DType::fp32));
  CHECK(dtype == DType::fp32 || dtype == DType::bf16, "sums of {}", name(dtype));
  // A block of all terms stays in the cache from one addition to the next.
  parallel_for(n, kElementGrain, [&](int64_t begin, int64_t end) {
    float* block = out.empty() ? nullptr : out.as<float>() + begin;
    if (dtype == DType::fp32) {
      sum_block<float>(block, terms, additions, begin, end - begin);
    } else {
      sum_block<bf16>(block, terms, additions, begin, end - begin);
    }
  });
}

}  // namespace lockstep::kernels::cpu
