#include "kernels/cuda/tiled_attention.h"
#include "kernels/cudnn_attention.h"
#include "tests/kernels/on_device.h"

// cuDNN's attention beside our own kernels, where there are a GPU and cuDNN.
namespace lockstep::kernels::cuda {
namespace {

using namespace lockstep::kernels::tests;

// What one implementation makes of the inputs.
template <class T>
struct Results {
  Values<T> y, dqkv;
  Values<float> lse;

  explicit Results(const AttentionShape& s)
      : y({s.sequences, s.tokens, s.heads.num_heads * s.heads.head_dim}, 9),
        dqkv({s.sequences, s.tokens, s.heads.packed()}, 9),
        lse({s.sequences, s.heads.num_heads, s.tokens}, 9) {}
};

template <class T>
class CudnnAttention : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    const std::string obstacle = cudnn_obstacle();
    if (!obstacle.empty()) GTEST_SKIP() << obstacle;
  }

  // By cuDNN, or by our own kernels. Backward reads what the same implementation's forward left, or
  // with `crossed` the other's.
  static Results<T> run(const AttentionShape& s, bool by_cudnn, bool crossed = false) {
    Stream stream(Device::cuda);
    Results<T> results(s);
    OnDevice<T> qkv(Values<T>::normal({s.sequences, s.tokens, s.heads.packed()}, 1), stream),
        dy(Values<T>::normal(results.y.tensor().shape(), 2), stream), y(results.y, stream),
        dqkv(results.dqkv, stream);
    OnDevice<float> lse(results.lse, stream);
    const DropoutMask none;
    const auto forward = [&](bool cudnn) {
      if (!cudnn) {
        tiled_attention_forward(y.tensor(), lse.tensor(), qkv.tensor(), s.heads, none, stream);
      } else {
        EXPECT_TRUE(
            cudnn_attention_forward(y.tensor(), lse.tensor(), qkv.tensor(), s.heads, none, stream));
      }
    };
    forward(crossed ? !by_cudnn : by_cudnn);
    if (by_cudnn) {
      EXPECT_TRUE(cudnn_attention_backward(dqkv.tensor(), dy.tensor(), y.tensor(), lse.tensor(),
                                           qkv.tensor(), s.heads, none, stream));
    } else {
      tiled_attention_backward(dqkv.tensor(), dy.tensor(), y.tensor(), lse.tensor(), qkv.tensor(),
                               s.heads, none, stream);
    }
    results.y = y.values(), results.lse = lse.values(), results.dqkv = dqkv.values();
    return results;
  }

  static void expect_agreement(const AttentionShape& s);
};

using HalfTypes = testing::Types<bf16, fp16>;
TYPED_TEST_SUITE(CudnnAttention, HalfTypes);

// ||got - want|| / ||want||. NaN where either has one.
template <class T>
double distance(const Values<T>& got, const Values<T>& want) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < want.size(); i++) {
    difference += std::pow(double{got[i]} - want[i], 2);
    norm += std::pow(double{want[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

// Both read the same operands and sum in fp32. cuDNN rounds probabilities, and the gradients of
// scores, to T before it multiplies them, and both round results: errors of at most one rounding
// each, independent of each other, so that two norms differ by less than three roundings (two
// results and an operand; delta, made of a rounded y, adds less). lse is fp32 in both: sums of up
// to a few thousand exponentials, each wrong by a few units in the last place by the fast ones that
// cuDNN takes, of numbers below 20.
template <class T>
void CudnnAttention<T>::expect_agreement(const AttentionShape& s) {
  ASSERT_EQ(cudnn_attention_obstacle(s), "");
  const Results<T> want = run(s, false);
  for (const bool crossed : {false, true}) {
    const Results<T> got = run(s, true, crossed);
    EXPECT_LT(distance(got.y, want.y), 3 * kStorageRounding<T>);
    EXPECT_LT(distance(got.dqkv, want.dqkv), 3 * kStorageRounding<T>);
    for (int64_t i = 0; i < want.lse.size(); i++) ASSERT_NEAR(got.lse[i], want.lse[i], 1e-4) << i;
  }
}

template <class T>
AttentionShape shape(int64_t sequences, int64_t tokens, const Heads& heads) {
  return {kDTypeOf<T>, sequences, tokens, heads};
}

TYPED_TEST(CudnnAttention, AgreesWithOurOwnKernels) {
  for (const AttentionShape& s :
       {shape<TypeParam>(2, 1024, {12, 12, 64}), shape<TypeParam>(1, 512, {8, 2, 128}),
        shape<TypeParam>(2, 129, {4, 1, 72}), shape<TypeParam>(3, 2, {2, 2, 8}),
        shape<TypeParam>(1, 1000, {3, 3, 96})}) {
    SCOPED_TRACE(fmt::format("B{} T{} D{}", s.sequences, s.tokens, s.heads.head_dim));
    ASSERT_NO_FATAL_FAILURE(this->expect_agreement(s));
  }
}

// Backward is several calls: of one sequence each, and of groups of its heads.
TYPED_TEST(CudnnAttention, AgreesInPieces) {
  ASSERT_NO_FATAL_FAILURE(this->expect_agreement(shape<TypeParam>(2, 4096, {12, 12, 64})));
  ASSERT_NO_FATAL_FAILURE(this->expect_agreement(shape<TypeParam>(2, 4096, {24, 6, 64})));
}

TYPED_TEST(CudnnAttention, HasTheSameBitsAtEveryRun) {
  const auto s = shape<TypeParam>(4, 1000, {8, 2, 64});
  const Results<TypeParam> first = this->run(s, true);
  for (int run = 0; run < 5; run++) {
    const Results<TypeParam> again = this->run(s, true);
    EXPECT_EQ(again.y.bytes(), first.y.bytes());
    EXPECT_EQ(again.lse.bytes(), first.lse.bytes());
    EXPECT_EQ(again.dqkv.bytes(), first.dqkv.bytes());
  }
}

TYPED_TEST(CudnnAttention, LeavesDropoutAndUnalignedRowsToOthers) {
  const auto s = shape<TypeParam>(1, 64, {2, 2, 64});
  Results<TypeParam> results(s);
  Stream stream(Device::cuda);
  for (const int64_t shift : {0, 1}) {
    OnDevice<TypeParam> qkv(Values<TypeParam>({1, 64, s.heads.packed()}), stream, shift),
        y(results.y, stream);
    OnDevice<float> lse(results.lse, stream);
    const DropoutMask mask{.probability = shift == 0 ? 0.5f : 0.0f};
    EXPECT_FALSE(
        cudnn_attention_forward(y.tensor(), lse.tensor(), qkv.tensor(), s.heads, mask, stream));
    EXPECT_EQ(y.values().bytes(), results.y.bytes());
  }
}

}  // namespace
}  // namespace lockstep::kernels::cuda
