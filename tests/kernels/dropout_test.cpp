#include "kernels/dropout.h"

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

const uint64_t kSteps[] = {7, 8};

DropoutMask mask_of(float probability) {
  return {.probability = probability, .seed = 42, .step = kSteps, .first_sequence = 3, .site = 5};
}

const Shape kShapes[] = {{1, 1, 1}, {2, 3, 7}, {3, 1, 64}, {2, 5, 1000}, {3, 17, 65}};

template <class T>
class Dropout : public testing::Test {};
TYPED_TEST_SUITE(Dropout, FloatTypes);

TYPED_TEST(Dropout, IsTheDefinition) {
  using T = TypeParam;
  Stream stream;
  for (const Shape& shape : kShapes) {
    const int64_t length = shape[1] * shape[2];
    for (float p : {0.0f, 0.1f, 0.5f, 0.999f}) {
      const DropoutMask mask = mask_of(p);
      auto x = Values<T>::normal(shape, 1), residual = Values<T>::normal(shape, 2);
      Values<T> dropped(shape), added(shape);
      dropout(dropped.tensor(), x.tensor(), mask, stream);
      residual_add(added.tensor(), residual.tensor(), x.tensor(), mask, stream);
      for (int64_t i = 0; i < x.size(); i++) {
        const int64_t place = i % length;
        const auto words =
            p == 0 ? PhiloxCounter{}
                   : mask.words(mask.key(), static_cast<uint32_t>(i / length), place / 4);
        const bool kept = p == 0 || words[place % 4] >= mask.threshold();
        const double want = kept ? x[i] / (1.0 - double{p}) : 0;
        // 1 / (1 - p) and the products: 1 - p is exact in fp32 for p >= 1/2, else within 2^-24.
        const double error = 4 * kRounding * (std::abs(want) + std::abs(want + residual[i]));
        ASSERT_NEAR(dropped[i], want, error + 1.01 * storage_error<T>(want))
            << shape.to_string() << " at " << i;
        ASSERT_NEAR(added[i], residual[i] + want,
                    error + 1.01 * storage_error<T>(residual[i] + want))
            << shape.to_string() << " at " << i;
      }
    }
  }
}

TYPED_TEST(Dropout, OutputMayBeAnInput) {
  using T = TypeParam;
  Stream stream;
  const Shape shape{2, 5, 333};
  for (float p : {0.0f, 0.3f}) {
    auto x = Values<T>::normal(shape, 1), residual = Values<T>::normal(shape, 2);
    Values<T> dropped(shape), added(shape);
    dropout(dropped.tensor(), x.tensor(), mask_of(p), stream);
    residual_add(added.tensor(), residual.tensor(), x.tensor(), mask_of(p), stream);
    auto into_x = x, into_residual = residual, in_place = x;
    dropout(in_place.tensor(), in_place.tensor(), mask_of(p), stream);
    residual_add(into_x.tensor(), residual.tensor(), into_x.tensor(), mask_of(p), stream);
    residual_add(into_residual.tensor(), into_residual.tensor(), x.tensor(), mask_of(p), stream);
    EXPECT_EQ(in_place.bytes(), dropped.bytes());
    EXPECT_EQ(into_x.bytes(), added.bytes());
    EXPECT_EQ(into_residual.bytes(), added.bytes());
  }
}

std::string kept(const DropoutMask& mask, const Shape& shape) {
  Stream stream;
  Values<float> ones(shape, 1.0f), out(shape);
  dropout(out.tensor(), ones.tensor(), mask, stream);
  std::string bits;
  for (int64_t i = 0; i < out.size(); i++) bits += out[i] == 0 ? '0' : '1';
  return bits;
}

TEST(DropoutMask, DropsTheGivenShareInEveryPlaceOfAWord) {
  constexpr int64_t kCount = 400'000;
  for (float p : {0.1f, 0.25f, 0.9f}) {
    const std::string bits = kept(mask_of(p), {4, 100, kCount / 400});
    const double deviation = std::sqrt(kCount * p * (1 - double{p}));
    EXPECT_NEAR(std::count(bits.begin(), bits.end(), '0'), kCount * p, 4 * deviation) << p;
    // Neighbours are independent: both are dropped in p^2 of the pairs.
    int64_t both = 0;
    for (size_t i = 1; i < bits.size(); i++) both += bits[i] == '0' && bits[i - 1] == '0';
    EXPECT_NEAR(both, kCount * double{p} * p, 6 * deviation) << p;
    for (size_t lane = 0; lane < 4; lane++) {
      int64_t dropped = 0;
      for (size_t i = lane; i < bits.size(); i += 4) dropped += bits[i] == '0';
      EXPECT_NEAR(dropped, kCount / 4 * p, 4 * deviation / 2) << p << ", lane " << lane;
    }
  }
}

TEST(DropoutMask, SeedStepSequenceAndSiteEachChangeIt) {
  const DropoutMask mask = mask_of(0.5f);
  DropoutMask seed = mask, step = mask, sequence = mask, site = mask;
  seed.seed++, step.step++, sequence.first_sequence++, site.site++;
  const Shape shape{1, 100, 100};
  const std::string bits = kept(mask, shape);
  EXPECT_EQ(kept(mask, shape), bits);
  for (const DropoutMask& other : {seed, step, sequence, site}) {
    const std::string changed = kept(other, shape);
    int64_t equal = 0;
    for (size_t i = 0; i < bits.size(); i++) equal += bits[i] == changed[i];
    EXPECT_NEAR(equal, 5000, 4 * 50);  // a fair coin, thrown 10,000 times
  }
}

TEST(DropoutMask, IsTheSameHoweverTheBatchIsSplit) {
  const std::string whole = kept(mask_of(0.5f), {6, 5, 77});
  for (int64_t parts : {2, 3, 6}) {
    std::string joined;
    for (int64_t part = 0; part < parts; part++) {
      DropoutMask mask = mask_of(0.5f);
      mask.first_sequence += static_cast<uint32_t>(part * 6 / parts);
      joined += kept(mask, {6 / parts, 5, 77});
    }
    EXPECT_EQ(joined, whole) << parts;
  }
}

TYPED_TEST(Dropout, BitsDoNotDependOnThreads) {
  using T = TypeParam;
  expect_same_bits_for_any_threads([] {
    Stream stream;
    const Shape shape{5, 40, 333};
    auto x = Values<T>::normal(shape, 1), residual = Values<T>::normal(shape, 2);
    dropout(x.tensor(), x.tensor(), mask_of(0.1f), stream);
    residual_add(residual.tensor(), residual.tensor(), x.tensor(), mask_of(0.2f), stream);
    residual_add(residual.tensor(), residual.tensor(), x.tensor(), mask_of(0), stream);
    return x.bytes() + residual.bytes();
  });
}

TYPED_TEST(Dropout, NonFiniteValuesStayVisible) {
  using T = TypeParam;
  Stream stream;
  for (float p : {0.0f, 0.5f}) {
    Values<T> x({1, 1, 8}, kNan), residual({1, 1, 8}, 1.0f), out({1, 1, 8});
    dropout(out.tensor(), x.tensor(), mask_of(p), stream);
    for (int64_t i = 0; i < 8; i++) EXPECT_TRUE(std::isnan(out[i]));
    residual_add(out.tensor(), residual.tensor(), x.tensor(), mask_of(p), stream);
    for (int64_t i = 0; i < 8; i++) EXPECT_TRUE(std::isnan(out[i]));
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
