#include "kernels/rope.h"
#include "tests/kernels/on_device.h"

namespace lockstep::kernels::tests {
namespace {

template <class T>
class RopeCuda : public CudaTest {};
TYPED_TEST_SUITE(RopeCuda, FloatTypes);

TYPED_TEST(RopeCuda, AgreesWithTheCpu) {
  using T = TypeParam;
  Stream host, stream(Device::cuda);
  for (const Heads& heads : {Heads{1, 1, 2}, Heads{3, 1, 6}, Heads{4, 2, 64}, Heads{1, 1, 250}}) {
    for (const int64_t shift : {0, 1}) {
      constexpr int64_t kPositions = 40, kFirst = 9;
      auto on_cpu = Values<T>::normal({2, 25, heads.packed()}, 1);
      auto table = Values<float>::normal({kPositions, heads.head_dim}, 2);
      OnDevice<T> qkv(on_cpu, stream, shift);
      OnDevice<float> device_table(table, stream);
      for (const auto turn : {rope_forward, rope_backward}) {
        turn(on_cpu.tensor(), table.tensor(), heads, kFirst, host);
        turn(qkv.tensor(), device_table.tensor(), heads, kFirst, stream);
      }
      const Values<T>& on_gpu = qkv.values();
      for (int64_t i = 0; i < on_cpu.size(); i++) {
        // Each turn: two products of values below 6 * 6, and a sum, fused or not; stored once each.
        ASSERT_NEAR(on_gpu[i], on_cpu[i], 100 * kRounding + 4 * storage_error<T>(on_cpu[i] + 40))
            << i;
      }
    }
  }
}

}  // namespace
}  // namespace lockstep::kernels::tests
