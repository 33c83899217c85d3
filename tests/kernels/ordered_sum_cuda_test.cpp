#include <deque>

#include "kernels/ordered_sum.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

// The same terms on both devices, of numbers of all sizes, so that every order of additions has
// other bits. Each addition is one rounding to fp32, and one to T where it is kept: the bits are
// the CPU's.
template <class T>
struct Terms {
  Stream host, stream{Device::cuda};
  std::deque<Values<T>> on_cpu;
  std::deque<OnDevice<T>> on_gpu;

  Terms(int count, int64_t n, int64_t shift = 0) {
    for (int t = 0; t < count; t++) {
      on_cpu.push_back(
          Values<T>::normal({n}, static_cast<unsigned>(t), 0, std::ldexp(1.0f, t * 5 % 12)));
      on_gpu.emplace_back(on_cpu.back(), stream, shift);
    }
  }
  std::vector<Tensor> cpu_tensors() {
    std::vector<Tensor> tensors;
    for (auto& term : on_cpu) tensors.push_back(term.tensor());
    return tensors;
  }
  std::vector<Tensor> gpu_tensors() {
    std::vector<Tensor> tensors;
    for (auto& term : on_gpu) tensors.push_back(term.tensor());
    return tensors;
  }
  void run(const std::vector<Addition>& additions, bool with_out, int64_t out_shift = 0) {
    Values<float> cpu_out(on_cpu[0].tensor().shape(), -1);
    OnDevice<float> gpu_out(cpu_out, stream, out_shift);
    ordered_sum(with_out ? cpu_out.tensor() : Tensor(), cpu_tensors(), additions, host);
    ordered_sum(with_out ? gpu_out.tensor() : Tensor(), gpu_tensors(), additions, stream);
    EXPECT_EQ(gpu_out.values().bytes(), cpu_out.bytes()) << "out";
    expect_same_terms();
  }
  void expect_same_terms() {
    for (size_t t = 0; t < on_cpu.size(); t++) {
      EXPECT_EQ(on_gpu[t].values().bytes(), on_cpu[t].bytes()) << "term " << t;
    }
  }
};

// Neighbours, then neighbours of those, and so on.
std::vector<Addition> tree(int count) {
  std::vector<Addition> additions;
  for (int distance = 1; distance < count; distance *= 2) {
    for (int i = 0; i + distance < count; i += 2 * distance) additions.push_back({i, i + distance});
  }
  return additions;
}

template <class T>
class OrderedSumCuda : public CudaTest {};
using TermTypes = testing::Types<float, bf16>;
TYPED_TEST_SUITE(OrderedSumCuda, TermTypes);

TYPED_TEST(OrderedSumCuda, HasTheBitsOfTheCpu) {
  for (const int64_t n : {1, 7, 8, 63, 5000, 8192}) {
    for (const int64_t shift : {0, 1}) {
      for (const bool with_out : {false, true}) {
        SCOPED_TRACE(testing::Message() << n << " shifted by " << shift);
        Terms<TypeParam>(6, n, shift).run(tree(6), with_out);
        Terms<TypeParam>(3, n).run({{2, 0}, {2, 1}, {0, 2}}, with_out, shift);
      }
    }
  }
}

TYPED_TEST(OrderedSumCuda, AddsAsManyTermsAsThereAre) {
  for (const int count : {24, 64, 65, 150}) {
    for (const bool with_out : {false, true}) {
      SCOPED_TRACE(count);
      Terms<TypeParam>(count, 100).run(tree(count), with_out);
    }
  }
}

// An odd number of terms when the next addition brings two.
TYPED_TEST(OrderedSumCuda, TermsOfAnAdditionStayTogether) {
  std::vector<Addition> additions{{0, 1}, {0, 2}};
  for (int t = 3; t < 139; t += 2) additions.push_back({t, t + 1});
  Terms<TypeParam>(139, 100).run(additions, true);
}

TYPED_TEST(OrderedSumCuda, AddsAsOftenAsItIsTold) {
  std::vector<Addition> additions;
  for (int k = 0; k < 300; k++) additions.push_back({k % 2, 2 + k % 3});
  Terms<TypeParam>(5, 100).run(additions, true);
}

TYPED_TEST(OrderedSumCuda, OfOneTermIsTheTerm) {
  for (const bool with_out : {false, true}) Terms<TypeParam>(1, 100).run({}, with_out);
}

TYPED_TEST(OrderedSumCuda, OfNothingIsNothing) { Terms<TypeParam>(2, 0).run({{0, 1}}, true); }

using OrderedSumCudaTerms = CudaTest;

TEST_F(OrderedSumCudaTerms, MayWriteOverATerm) {
  for (const int out : {0, 1, 2}) {
    Terms<float> terms(3, 1000);
    const std::vector<Addition> additions{{0, 1}, {0, 2}};
    ordered_sum(terms.on_cpu[out].tensor(), terms.cpu_tensors(), additions, terms.host);
    ordered_sum(terms.on_gpu[out].tensor(), terms.gpu_tensors(), additions, terms.stream);
    terms.expect_same_terms();
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
