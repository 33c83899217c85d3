#include "kernels/ordered_sum.h"

#include <algorithm>
#include <vector>

#include "core/check.h"
#include "core/profile.h"
#include "kernels/cpu/rows.h"
#include "kernels/work.h"

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

// Each term that is needed is read once, each that is added to written once.
double moved_bytes(const Tensor& out, std::span<const Tensor> terms,
                   std::span<const Addition> additions) {
  std::vector<int> read, written;
  for (const Addition& a : additions) {
    read.insert(read.end(), {a.to, a.from});
    if (out.empty() || &a != &additions.back()) written.push_back(a.to);
  }
  if (additions.empty() && !out.empty()) read.push_back(0);
  const auto distinct = [](std::vector<int>& all) {
    std::sort(all.begin(), all.end());
    return static_cast<double>(std::unique(all.begin(), all.end()) - all.begin());
  };
  return bytes_of(terms.front()) * (distinct(read) + distinct(written)) + bytes_of(out);
}

}  // namespace

void ordered_sum(const Tensor& out, std::span<const Tensor> terms,
                 std::span<const Addition> additions, Stream&) {
  const int64_t n = terms.front().size();
  const DType dtype = terms.front().dtype();
  for (const Tensor& term : terms) CHECK(term.size() == n && term.dtype() == dtype);
  CHECK(out.empty() || (out.size() == n && out.dtype() == DType::fp32));
  CHECK(dtype == DType::fp32 || dtype == DType::bf16, "sums of {}", name(dtype));
  const ProfileScope scope(
      {"ordered_sum", Profile::active() ? moved_bytes(out, terms, additions) : 0});
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
