#include "kernels/cuda/device.cuh"
#include "kernels/rope.h"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A thread turns one pair (i, i + D/2) of one head. Neighbouring threads have neighbouring i, so
// that loads and stores join; rows are short, and packs would not fit every head size.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(T* __restrict__ qkv, const float* __restrict__ table, int64_t pairs, int half,
                  int turned_heads, int packed, int64_t length, int64_t first_position,
                  float direction) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= pairs) return;
  const int i = static_cast<int>(n % half);
  const int head = static_cast<int>(n / half % turned_heads);
  const int64_t token = n / half / turned_heads;
  const float* row = table + (first_position + token % length) * 2 * half;
  T* low = qkv + token * packed + head * 2 * half + i;
  T* high = low + half;
  const float cosine = row[i], sine = direction * row[half + i];
  const float x = widened(*low), y = widened(*high);
  *low = rounded<T>(x * cosine - y * sine);
  *high = rounded<T>(y * cosine + x * sine);
}

void rotate(const Tensor& qkv, const Tensor& table, const Heads& heads, int64_t first_position,
            float direction, Stream& stream) {
  const int64_t length = qkv.dim(qkv.shape().rank() - 2), half = heads.head_dim / 2;
  CHECK(qkv.cols() == heads.packed() && table.cols() == heads.head_dim);
  CHECK(first_position >= 0 && first_position + length <= table.rows());
  const int64_t turned_heads = heads.num_heads + heads.num_kv_heads;
  const int64_t pairs = qkv.rows() * turned_heads * half;
  with_float_type(qkv.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto turned_bytes = static_cast<double>(2 * pairs * 2) * sizeof(T);  // read and written
    const auto table_bytes = static_cast<double>(length * heads.head_dim) * sizeof(float);
    launch({direction > 0 ? "rope_forward" : "rope_backward", turned_bytes + table_bytes},
           rotate_kernel<T>, dim3(blocks_for(pairs, kThreads)), dim3(kThreads), 0, stream,
           qkv.as<T>(), table.as<float>(), pairs, static_cast<int>(half),
           static_cast<int>(turned_heads), static_cast<int>(heads.packed()), length, first_position,
           direction);
  });
}

}  // namespace

void rope_forward(const Tensor& qkv, const Tensor& table, const Heads& heads,
                  int64_t first_position, Stream& stream) {
  rotate(qkv, table, heads, first_position, 1, stream);
}

void rope_backward(const Tensor& dqkv, const Tensor& table, const Heads& heads,
                   int64_t first_position, Stream& stream) {
  rotate(dqkv, table, heads, first_position, -1, stream);
}

}  // namespace lockstep::kernels::cuda
