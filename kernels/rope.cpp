#include "kernels/rope.h"

#include "core/profile.h"
#include "kernels/cpu/rows.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

// Rotates `count` heads that lie one after the other; `direction` is 1, or -1 to rotate back. A
// kHalf other than 0 is `half`, known to the compiler, which then keeps the angles in registers.
template <int kHalf, class T>
LOCKSTEP_INLINE void rotate_each(T* heads, const float* cosines, const float* sines, int64_t count,
                                 int64_t half, float direction) {
  const int64_t n = kHalf != 0 ? kHalf : half;
  for (int64_t h = 0; h < count; h++) {
    T* low = heads + h * 2 * n;
    T* high = low + n;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      const float a = to_float(low[i]), b = to_float(high[i]), sine = direction * sines[i];
      low[i] = from_float<T>(a * cosines[i] - b * sine);
      high[i] = from_float<T>(b * cosines[i] + a * sine);
    }
  }
}

template <class T>
LOCKSTEP_CLONES void rotate_heads(T* heads, const float* cosines, const float* sines, int64_t count,
                                  int64_t half, float direction) {
  if (half == 32) return rotate_each<32>(heads, cosines, sines, count, half, direction);
  if (half == 64) return rotate_each<64>(heads, cosines, sines, count, half, direction);
  return rotate_each<0>(heads, cosines, sines, count, half, direction);
}

void rotate(const Tensor& qkv, const Tensor& table, const Heads& heads, int64_t first_position,
            float direction) {
  const int64_t length = qkv.dim(1), half = heads.head_dim / 2;
  CHECK(qkv.shape().rank() == 3 && qkv.cols() == heads.packed());
  CHECK(heads.head_dim % 2 == 0 && table.cols() == heads.head_dim);
  CHECK(first_position >= 0 && first_position + length <= table.rows());
  const auto turned = static_cast<double>(heads.num_heads + heads.num_kv_heads) /
                      static_cast<double>(heads.num_heads + 2 * heads.num_kv_heads);
  const ProfileScope scope({direction > 0 ? "rope_forward" : "rope_backward",
                            2 * turned * bytes_of(qkv) +
                                bytes_of(table.slice(first_position, first_position + length))});
  with_float_type(qkv.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(qkv.rows(), kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) {
        const float* angles = table.as<float>() + (first_position + n % length) * 2 * half;
        rotate_heads(qkv.as<T>() + n * qkv.cols(), angles, angles + half,
                     heads.num_heads + heads.num_kv_heads, half, direction);
      }
    });
  });
}

}  // namespace

void rope_forward(const Tensor& qkv, const Tensor& table, const Heads& heads,
                  int64_t first_position, Stream&) {
  rotate(qkv, table, heads, first_position, 1.0f);
}

void rope_backward(const Tensor& dqkv, const Tensor& table, const Heads& heads,
                   int64_t first_position, Stream&) {
  rotate(dqkv, table, heads, first_position, -1.0f);
}

}  // namespace lockstep::kernels::cpu
