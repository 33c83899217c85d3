#include "kernels/dropout.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

const uint64_t kStep = 7;

DropoutMask mask_of(float probability) {
  return {.probability = probability, .seed = 42, .step = &kStep, .first_sequence = 3, .site = 5};
}

// Sequences of whole packs and not, of fewer values than a pack, and of more than a block.
const Shape kShapes[] = {{1, 1, 1}, {2, 3, 7}, {3, 1, 64}, {2, 5, 1000}, {3, 17, 65}, {2, 3, 4}};

template <class T>
class DropoutCuda : public CudaTest {};
TYPED_TEST_SUITE(DropoutCuda, FloatTypes);

TYPED_TEST(DropoutCuda, AgreesWithTheCpu) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  for (const Shape& shape : kShapes) {
    for (const float p : {0.0f, 0.1f, 0.999f}) {
      for (const int64_t shift : {0, 1}) {
        const DropoutMask mask = mask_of(p);
        const MaskOnDevice device_mask(mask, stream);
        auto x = Values<T>::normal(shape, 1), residual = Values<T>::normal(shape, 2);
        Values<T> dropped(shape), added(shape);
        OnDevice<T> device_x(x, stream, shift), device_residual(residual, stream);
        OnDevice<T> device_dropped(dropped, stream), device_added(added, stream);
        dropout(dropped.tensor(), x.tensor(), mask, host);
        dropout(device_dropped.tensor(), device_x.tensor(), device_mask, stream);
        residual_add(added.tensor(), residual.tensor(), x.tensor(), mask, host);
        residual_add(device_added.tensor(), device_residual.tensor(), device_x.tensor(),
                     device_mask, stream);
        ASSERT_EQ(device_dropped.values().bytes(), dropped.bytes()) << shape.to_string();
        for (int64_t i = 0; i < x.size(); i++) {
          // The product may be rounded before it is added or not.
          const double product = x[i] / (1 - double{p});
          ASSERT_NEAR(device_added.values()[i], added[i],
                      2 * kRounding * std::abs(product) + 2 * storage_error<T>(added[i]))
              << shape.to_string() << " at " << i;
        }
      }
    }
  }
}

// Infinity times zero is NaN on both, and so is what the network made of NaN.
TYPED_TEST(DropoutCuda, NonFiniteValuesStay) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  Values<T> x({1, 1, 64}, kInfinity), out({1, 1, 64});
  for (int64_t i = 0; i < 32; i++) x.set(i, kNan);
  OnDevice<T> device_x(x, stream), device_out(out, stream);
  dropout(out.tensor(), x.tensor(), mask_of(0.5f), host);
  const MaskOnDevice mask(mask_of(0.5f), stream);
  dropout(device_out.tensor(), device_x.tensor(), mask, stream);
  for (int64_t i = 0; i < 64; i++) {
    EXPECT_EQ(std::isnan(device_out.values()[i]), std::isnan(out[i])) << i;
    EXPECT_EQ(std::isinf(device_out.values()[i]), std::isinf(out[i])) << i;
  }
}

TYPED_TEST(DropoutCuda, OutputMayBeAnInput) {
  using T = TypeParam;
  Stream stream(Device::cuda);
  for (const float p : {0.0f, 0.3f}) {
    const Shape shape{2, 9, 33};
    const MaskOnDevice mask(mask_of(p), stream);
    const auto x = Values<T>::normal(shape, 1), residual = Values<T>::normal(shape, 2);
    OnDevice<T> x1(x, stream), x2(x, stream), residual1(residual, stream), out(x, stream);
    dropout(out.tensor(), x1.tensor(), mask, stream);
    dropout(x2.tensor(), x2.tensor(), mask, stream);
    EXPECT_EQ(x2.values().bytes(), out.values().bytes());
    residual_add(out.tensor(), residual1.tensor(), x1.tensor(), mask, stream);
    residual_add(residual1.tensor(), residual1.tensor(), x1.tensor(), mask, stream);
    EXPECT_EQ(residual1.values().bytes(), out.values().bytes());
    OnDevice<T> residual2(residual, stream);
    residual_add(x1.tensor(), residual2.tensor(), x1.tensor(), mask, stream);
    EXPECT_EQ(x1.values().bytes(), out.values().bytes());
  }
}

// A sequence has the same mask whichever tensor holds it.
TYPED_TEST(DropoutCuda, BitsOfASequenceDoNotDependOnTheOthers) {
  using T = TypeParam;
  Stream stream(Device::cuda);
  const auto x = Values<T>::normal({5, 7, 12}, 1);
  OnDevice<T> device_x(x, stream), all(Values<T>({5, 7, 12}), stream);
  OnDevice<T> alone(Values<T>({1, 7, 12}), stream);
  const MaskOnDevice all_masked(mask_of(0.4f), stream);
  DropoutMask mask = all_masked;
  dropout(all.tensor(), device_x.tensor(), mask, stream);
  mask.first_sequence += 3;
  dropout(alone.tensor(), device_x.tensor().slice(3, 4), mask, stream);
  EXPECT_EQ(alone.values().bytes(), all.values().bytes(3 * 84, 4 * 84));
}

TEST_F(CudaTest, DropoutOfNothing) {
  Stream stream(Device::cuda);
  OnDevice<float> x(Values<float>({0, 3, 4}), stream), y(Values<float>({0, 3, 4}), stream);
  dropout(y.tensor(), x.tensor(), mask_of(0.5f), stream);
  residual_add(y.tensor(), x.tensor(), x.tensor(), mask_of(0), stream);
  stream.synchronize();
}

}  // namespace
}  // namespace lockstep::kernels::tests
