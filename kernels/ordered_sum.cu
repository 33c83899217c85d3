#include <algorithm>
#include <bit>
#include <type_traits>
#include <vector>

#include "kernels/cuda/packs.cuh"
#include "kernels/ordered_sum.h"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPackBytes = 16;
constexpr int kMaxTerms = 48;  // what shared memory of every GPU since 8.0 holds
constexpr int kMaxAdditions = 128;

// One pass over memory: additions among at most kMaxTerms of the terms, handed over by value.
template <class T>
struct Pass {
  struct Step {
    int16_t to, from;
  };
  T* terms[kMaxTerms];
  Step steps[kMaxAdditions];
  uint64_t changed = 0;  // bit i: terms[i] is to be stored
  int num_terms = 0, num_steps = 0;
  float* out = nullptr;  // gets the last step instead; without steps, terms[0]
};
static_assert(sizeof(Pass<float>) < 4000, "kernel parameters are at most 4 KiB");

template <class T>
__device__ Pack<T> sum_of(Pack<T> a, Pack<T> b) {
  Pack<T> sum;
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; i++) {
    sum.value[i] = rounded<T>(widened(a.value[i]) + widened(b.value[i]));
  }
  return sum;
}

// out = the last step, unrounded; without steps, terms[0].
template <bool kWhole, class T>
__device__ void store_out(const Pass<T>& pass, const Pack<T>* held, int64_t first, int64_t n) {
  constexpr int kSize = Pack<float>::kSize;
  const bool any = pass.num_steps > 0;
  const auto last = pass.steps[any ? pass.num_steps - 1 : 0];
  const Pack<T> a = held[any ? last.to * kThreads : 0];
  const Pack<T> b = any ? held[last.from * kThreads] : Pack<T>{};
#pragma unroll
  for (int k = 0; k < Pack<T>::kSize; k += kSize) {
    Pack<float> sum;
#pragma unroll
    for (int i = 0; i < kSize; i++) {
      const float x = widened(a.value[k + i]);
      sum.value[i] = any ? x + widened(b.value[k + i]) : x;  // x + 0 would lose the sign of -0
    }
    store_pack<kWhole>(pass.out, first + k, n, sum);
  }
}

// A thread carries out all steps for one pack of elements. Its packs of all terms are in shared
// memory, which unlike registers can be indexed; no other thread looks at them.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pass_kernel(const Pass<T> pass, int64_t n, bool packed) {
  Pack<T>* held = dynamic_shared<Pack<T>>() + threadIdx.x;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * Pack<T>::kSize;
  if (first >= n) return;
  by_packs(packed && first + Pack<T>::kSize <= n, [&](auto whole) {
#pragma unroll 8
    for (int t = 0; t < pass.num_terms; t++) {
      held[t * kThreads] = load_pack<whole>(pass.terms[t], first, n);
    }
    const int stored_steps = pass.num_steps - (pass.out != nullptr ? 1 : 0);
    for (int s = 0; s < stored_steps; s++) {
      Pack<T>& to = held[pass.steps[s].to * kThreads];
      to = sum_of(to, held[pass.steps[s].from * kThreads]);
    }
    for (int t = 0; t < pass.num_terms; t++) {
      if (pass.changed >> t & 1) store_pack<whole>(pass.terms[t], first, n, held[t * kThreads]);
    }
    if (pass.out != nullptr) store_out<whole>(pass, held, first, n);
  });
}

// Takes additions from the front of `rest`, as many as fit one pass.
template <class T>
Pass<T> next_pass(std::span<const Tensor> terms, std::span<const Addition>& rest) {
  Pass<T> pass;
  std::vector<int> place(terms.size(), -1);  // in the pass
  while (!rest.empty() && pass.num_steps < kMaxAdditions && pass.num_terms + 2 <= kMaxTerms) {
    const Addition addition = rest.front();
    const auto place_of = [&](int i) {
      int& at = place[static_cast<size_t>(i)];
      if (at < 0) {
        at = pass.num_terms++;
        pass.terms[at] = terms[static_cast<size_t>(i)].template as<T>();
      }
      return static_cast<int16_t>(at);
    };
    pass.steps[pass.num_steps++] = {place_of(addition.to), place_of(addition.from)};
    rest = rest.subspan(1);
  }
  return pass;
}

template <class T>
void sum_in_passes(float* out, std::span<const Tensor> terms, std::span<const Addition> additions,
                   int64_t n, Stream& stream) {
  do {
    Pass<T> pass = next_pass<T>(terms, additions);
    if (additions.empty()) pass.out = out;
    if (pass.num_steps == 0) {
      if (out == nullptr) return;
      pass.terms[pass.num_terms++] = terms.front().as<T>();
    }
    const int stored_steps = pass.num_steps - (pass.out != nullptr ? 1 : 0);
    for (int s = 0; s < stored_steps; s++) pass.changed |= uint64_t{1} << pass.steps[s].to;
    const bool packed =
        aligned_to_packs(pass.out) && std::all_of(pass.terms, pass.terms + pass.num_terms,
                                                  [](T* term) { return aligned_to_packs(term); });
    const int runs = pass.num_terms + std::popcount(pass.changed);
    const double moved = static_cast<double>(n) * (runs * static_cast<double>(sizeof(T)) +
                                                   (pass.out == nullptr ? 0 : sizeof(float)));
    launch({"ordered_sum", moved}, pass_kernel<T>, dim3(blocks_for(n, kThreads * Pack<T>::kSize)),
           dim3(kThreads), int64_t{pass.num_terms} * kThreads * kPackBytes, stream, pass, n,
           packed);
  } while (!additions.empty());
}

}  // namespace

void ordered_sum(const Tensor& out, std::span<const Tensor> terms,
                 std::span<const Addition> additions, Stream& stream) {
  const int64_t n = terms.front().size();
  const DType dtype = terms.front().dtype();
  for (const Tensor& term : terms) CHECK(term.size() == n && term.dtype() == dtype);
  CHECK(out.empty() || (out.size() == n && out.dtype() == DType::fp32));
  CHECK(dtype == DType::fp32 || dtype == DType::bf16, "sums of {}", name(dtype));
  float* sums = data_or_null<float>(out);
  if (dtype == DType::fp32) {
    sum_in_passes<float>(sums, terms, additions, n, stream);
  } else {
    sum_in_passes<bf16>(sums, terms, additions, n, stream);
  }
}

}  // namespace lockstep::kernels::cuda
