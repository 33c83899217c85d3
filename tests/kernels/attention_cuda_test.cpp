#include "kernels/attention.h"
#include "kernels/cuda/tiled_attention.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

struct AttentionSize {
  int64_t sequences, tokens;
  Heads heads;
  int64_t shift = 0;  // elements off the alignment of memory
  int64_t width() const { return heads.num_heads * heads.head_dim; }
};
void PrintTo(const AttentionSize& s, std::ostream* out) {
  *out << "B" << s.sequences << " T" << s.tokens << " H" << s.heads.num_heads << " K"
       << s.heads.num_kv_heads << " D" << s.heads.head_dim << " shift " << s.shift;
}

// Tails of every tile (32 and 64 rows, heads of 64, 128 and 256), packs that do not fit, groups.
const AttentionSize kAttentionSizes[] = {
    {1, 1, {1, 1, 1}},    {2, 67, {2, 1, 16}, 1}, {2, 130, {2, 2, 8}},  {1, 37, {3, 1, 7}},
    {1, 65, {2, 1, 128}}, {1, 33, {1, 1, 100}},   {1, 70, {2, 1, 130}}, {1, 34, {1, 1, 256}},
    {1, 128, {1, 1, 64}}, {2, 0, {2, 1, 4}},      {0, 5, {2, 1, 4}}};

const uint64_t kStep = 6;

DropoutMask some_mask(float probability) {
  return {.probability = probability, .seed = 5, .step = &kStep, .first_sequence = 7, .site = 8};
}

template <class T>
void widen(Values<float>& out, const Values<T>& values) {
  for (int64_t i = 0; i < values.size(); i++) out.set(i, static_cast<float>(values[i]));
}

// Forward and backward of one set of values.
template <class T>
struct Case {
  AttentionSize size;
  DropoutMask mask;
  Values<T> qkv, dy, y, dqkv;
  Values<float> lse;

  explicit Case(AttentionSize s, float dropout = 0)
      : size(s),
        mask(some_mask(dropout)),
        qkv(Values<T>::normal({s.sequences, s.tokens, s.heads.packed()}, 1, 0, 1.5f)),
        dy(Values<T>::normal({s.sequences, s.tokens, s.width()}, 2)),
        y({s.sequences, s.tokens, s.width()}, 9),
        dqkv({s.sequences, s.tokens, s.heads.packed()}, 9),
        lse({s.sequences, s.heads.num_heads, s.tokens}, 9) {}

  // The same values in fp32.
  Case<float> in_fp32() const {
    Case<float> twin(size, mask.probability);
    widen(twin.qkv, qkv), widen(twin.dy, dy);
    return twin;
  }
  void forward_on_cpu() {
    Stream stream;
    attention_forward(y.tensor(), lse.tensor(), qkv.tensor(), size.heads, mask, stream);
  }
  void backward_on_cpu() {
    Stream stream;
    attention_backward(dqkv.tensor(), dy.tensor(), y.tensor(), lse.tensor(), qkv.tensor(),
                       size.heads, mask, stream);
  }
  void run_on_device() {
    Stream stream(Device::cuda);
    OnDevice<T> device_qkv(qkv, stream, size.shift), device_dy(dy, stream, size.shift),
        device_y(y, stream, size.shift), device_dqkv(dqkv, stream, size.shift);
    OnDevice<float> device_lse(lse, stream, size.shift);
    const MaskOnDevice device_mask(mask, stream);
    // Our own kernels on a GPU too, where cuDNN has the shapes that it has plans for.
    cuda::tiled_attention_forward(device_y.tensor(), device_lse.tensor(), device_qkv.tensor(),
                                  size.heads, device_mask, stream);
    cuda::tiled_attention_backward(device_dqkv.tensor(), device_dy.tensor(), device_y.tensor(),
                                   device_lse.tensor(), device_qkv.tensor(), size.heads,
                                   device_mask, stream);
    y = device_y.values(), lse = device_lse.values(), dqkv = device_dqkv.values();
  }
};

template <class T>
class AttentionCuda : public CudaTest {};
TYPED_TEST_SUITE(AttentionCuda, FloatTypes);

// Both are fp32 inside, and the twin has fp32 storage too: the CPU's tiles round probabilities to
// T, the device's do not. Scores are sums of up to 256 products in fp32, wrong by 1e-6 in practice;
// outputs and gradients are a few units and tens, sums of hundreds of terms: 5e-5 in all. What is
// left is that the device stores in T, once.
template <class T>
void expect_near(const Values<T>& got, const Values<float>& want, double error = 5e-5) {
  ASSERT_EQ(got.size(), want.size());
  for (int64_t i = 0; i < got.size(); i++) {
    ASSERT_NEAR(got[i], want[i], error + storage_error<T>(std::abs(want[i]) + error)) << i;
  }
}

TYPED_TEST(AttentionCuda, AgreesWithTheCpu) {
  using T = TypeParam;
  for (const AttentionSize& s : kAttentionSizes) {
    for (const float dropout : {0.0f, 0.25f}) {
      SCOPED_TRACE(testing::PrintToString(s) + " dropout " + std::to_string(dropout));
      Case<T> on_device(s, dropout);
      on_device.run_on_device();
      Case<float> twin = on_device.in_fp32();
      twin.forward_on_cpu();
      ASSERT_NO_FATAL_FAILURE(expect_near(on_device.lse, twin.lse, 1e-5));
      ASSERT_NO_FATAL_FAILURE(expect_near(on_device.y, twin.y));
      // Backward reads what forward stored, rounded.
      widen(twin.y, on_device.y), twin.lse = on_device.lse;
      twin.backward_on_cpu();
      ASSERT_NO_FATAL_FAILURE(expect_near(on_device.dqkv, twin.dqkv));
    }
  }
}

// The second of two sequences, alone, gives the bits that it has beside the first.
TYPED_TEST(AttentionCuda, SequencesDoNotDependOnEachOther) {
  Case<TypeParam> both({2, 75, {4, 2, 16}}, 0.1f), second({1, 75, {4, 2, 16}}, 0.1f);
  for (int64_t i = 0; i < second.qkv.size(); i++) {
    second.qkv.set(i, static_cast<float>(both.qkv[second.qkv.size() + i]));
  }
  for (int64_t i = 0; i < second.dy.size(); i++) {
    second.dy.set(i, static_cast<float>(both.dy[second.dy.size() + i]));
  }
  second.mask.first_sequence++;
  both.run_on_device(), second.run_on_device();
  const auto second_half = [](const auto& v) { return v.bytes(v.size() / 2, v.size()); };
  EXPECT_EQ(second_half(both.y), second.y.bytes());
  EXPECT_EQ(second_half(both.lse), second.lse.bytes());
  EXPECT_EQ(second_half(both.dqkv), second.dqkv.bytes());
}

// A token's output has the same bits whatever tokens follow it.
TYPED_TEST(AttentionCuda, OutputsDoNotDependOnLaterTokens) {
  Case<TypeParam> all({1, 150, {2, 1, 16}}), start({1, 70, {2, 1, 16}});
  for (int64_t i = 0; i < start.qkv.size(); i++) {
    start.qkv.set(i, static_cast<float>(all.qkv[i]));
  }
  all.run_on_device(), start.run_on_device();
  EXPECT_EQ(all.y.bytes(0, start.y.size()), start.y.bytes());
}

// Where rows are not aligned, they are read and written otherwise, but the numbers are the same.
TYPED_TEST(AttentionCuda, BitsDoNotDependOnAlignment) {
  Case<TypeParam> aligned({1, 70, {2, 1, 24}}, 0.1f), shifted({1, 70, {2, 1, 24}, 1}, 0.1f);
  aligned.run_on_device(), shifted.run_on_device();
  EXPECT_EQ(aligned.y.bytes(), shifted.y.bytes());
  EXPECT_EQ(aligned.dqkv.bytes(), shifted.dqkv.bytes());
}

// New tokens of a sequence, in parts, through a page on one device. Returns all outputs.
template <class T>
Values<T> generate(const AttentionSize& s, const Values<T>& qkv, const std::vector<int64_t>& parts,
                   Device device) {
  constexpr int64_t kMoreRoom = 4;
  Stream host, stream(Device::cuda);
  const PagePlace place{s.tokens + kMoreRoom, 0};
  Values<T> all({s.tokens, s.width()});
  Values<T> page({2 * s.heads.num_kv_heads, place.page_size, s.heads.head_dim}, kNan);
  OnDevice<T> device_page(page, stream, s.shift);
  int64_t position = 0;
  for (const int64_t count : parts) {
    Values<T> rows({count, s.heads.packed()}), y({count, s.width()}, 9);
    for (int64_t i = 0; i < rows.size(); i++) {
      rows.set(i, static_cast<float>(qkv[position * s.heads.packed() + i]));
    }
    const bool on_cpu = device == Device::cpu;
    void* const pages[] = {on_cpu ? page.tensor().data() : device_page.tensor().data()};
    const CachedSequence sequence{count, position, pages};
    if (on_cpu) {
      attention_with_cache(y.tensor(), rows.tensor(), s.heads, std::span(&sequence, 1), place,
                           Rows::in_tiles, host);
    } else {
      OnDevice<T> device_rows(rows, stream, s.shift), device_y(y, stream, s.shift);
      attention_with_cache(device_y.tensor(), device_rows.tensor(), s.heads,
                           std::span(&sequence, 1), place, Rows::in_tiles, stream);
      y = device_y.values();
    }
    for (int64_t i = 0; i < y.size(); i++) {
      all.set(position * s.width() + i, static_cast<float>(y[i]));
    }
    position += count;
  }
  return all;
}

TYPED_TEST(AttentionCuda, WithCacheAgreesWithTheCpu) {
  using T = TypeParam;
  for (const AttentionSize& s :
       {AttentionSize{1, 300, {2, 1, 16}}, AttentionSize{1, 300, {2, 2, 20}, 1},
        AttentionSize{1, 140, {1, 1, 250}}, AttentionSize{1, 140, {1, 1, 128}}}) {
    SCOPED_TRACE(testing::PrintToString(s));
    const auto qkv = Values<T>::normal({s.tokens, s.heads.packed()}, 3, 0, 1.5f);
    Values<float> wide({s.tokens, s.heads.packed()});
    widen(wide, qkv);
    for (const std::vector<int64_t>& parts :
         {std::vector<int64_t>{s.tokens}, {1, 1, 0, 2, s.tokens - 13, 8, 1}}) {
      ASSERT_NO_FATAL_FAILURE(expect_near(generate(s, qkv, parts, Device::cuda),
                                          generate(s, wide, parts, Device::cpu)));
    }
  }
}

// Generated alone or with others, beside others or not, a token's bits are its own.
TYPED_TEST(AttentionCuda, FewTokensHaveTheBitsOfOne) {
  const AttentionSize s{1, 140, {2, 1, 16}};
  const auto qkv = Values<TypeParam>::normal({s.tokens, s.heads.packed()}, 3);
  EXPECT_EQ(generate(s, qkv, {133, 1, 1, 1, 1, 1, 1, 1}, Device::cuda).bytes(),
            generate(s, qkv, {133, 2, 5}, Device::cuda).bytes());
}

class AttentionCudaNumbers : public CudaTest {};

TEST_F(AttentionCudaNumbers, LargeScoresDoNotOverflow) {
  Case<float> test({1, 3, {1, 1, 1}});
  const float qkv[] = {100, 90, 1, 100, 100, 2, 100, -100, 3};  // scores up to 10000
  for (int64_t i = 0; i < 9; i++) test.qkv.set(i, qkv[i]);
  test.run_on_device();
  EXPECT_EQ(test.y.doubles(), (std::vector<double>{1, 2, 2}));
  for (const double d : test.dqkv.doubles()) EXPECT_TRUE(std::isfinite(d));
}

TEST_F(AttentionCudaNumbers, WhatIsNotFiniteIsPassedOn) {
  Case<float> test({2, 70, {1, 1, 8}});
  for (int64_t i = 0; i < test.qkv.size() / 2; i++) test.qkv.set(i, kNan);
  test.run_on_device();
  for (int64_t i = 0; i < test.y.size(); i++) {
    ASSERT_EQ(std::isnan(test.y[i]), i < test.y.size() / 2) << i;
  }
  for (int64_t i = 0; i < test.dqkv.size(); i++) {
    ASSERT_EQ(std::isnan(test.dqkv[i]), i < test.dqkv.size() / 2) << i;
  }
}

TEST_F(AttentionCudaNumbers, NamesShapesThatDoNotFit) {
  Stream stream(Device::cuda);
  Case<float> test({1, 4, {4, 2, 8}}), large({1, 1, {1, 1, 257}});
  const auto forward = [&](Case<float>& c, const Heads& heads) {
    attention_forward(c.y.tensor(), c.lse.tensor(), c.qkv.tensor(), heads, DropoutMask(), stream);
  };
  EXPECT_THROW(forward(test, {4, 3, 8}), std::logic_error);
  EXPECT_THROW(forward(test, {4, 2, 9}), std::logic_error);
  EXPECT_THROW(forward(large, large.size.heads), std::logic_error);
  Values<float> page({4, 12, 8}), rows({4, 64}), y({4, 32});
  void* const pages[] = {page.tensor().data(), page.tensor().data()};
  const auto cached = [&](const CachedSequence& sequence) {
    attention_with_cache(y.tensor(), rows.tensor(), {4, 2, 8}, std::span(&sequence, 1), {12, 0},
                         Rows::in_tiles, stream);
  };
  EXPECT_THROW(cached({4, 9, std::span(pages, 1)}), std::logic_error);
  EXPECT_THROW(cached({4, 0, pages}), std::logic_error);  // several pages
}

}  // namespace
}  // namespace lockstep::kernels::tests
