#include "kernels/cuda/bias_gradient.h"
#include "kernels/cuda/packs.cuh"
#include "kernels/cuda/workspace.h"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int64_t kRows = kBiasRows;  // that a block adds up

// out[block,c] = or += the sum over the block's rows of x[n,c]. A lane has one pack of columns, a
// warp each kWarps-th row; the warps' sums are then joined one after the other.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(float* __restrict__ out, const T* __restrict__ x, int64_t rows, int64_t columns,
                    bool packed, bool add) {
  constexpr int kSize = Pack<T>::kSize;
  __shared__ float sums[kWarps][kWarpSize * kSize];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int64_t first_column = int64_t{blockIdx.y} * kWarpSize * kSize;
  const int64_t first_row = int64_t{blockIdx.x} * kRows;
  const int64_t column = first_column + lane * kSize;

  float sum[kSize] = {};
  if (column < columns) {
    const int64_t end = first_row + kRows < rows ? first_row + kRows : rows;
    by_packs(packed, [&](auto whole) {
#pragma unroll 4
      for (int64_t row = first_row + warp; row < end; row += kWarps) {
        const Pack<T> pack = load_pack<whole>(x + row * columns, column, columns);
#pragma unroll
        for (int i = 0; i < kSize; i++) sum[i] += widened(pack.value[i]);
      }
    });
  }
  // Stored pack element by element, so that a warp's stores go to neighbouring banks.
#pragma unroll
  for (int i = 0; i < kSize; i++) sums[warp][i * kWarpSize + lane] = sum[i];
  __syncthreads();

  for (int c = thread; c < kWarpSize * kSize; c += kThreads) {
    if (first_column + c >= columns) break;
    const int place = c % kSize * kWarpSize + c / kSize;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) total += sums[w][place];
    float& result = out[blockIdx.x * columns + first_column + c];
    result = add ? result + total : total;
  }
}

template <class T>
void sum_rows(float* out, const T* x, int64_t rows, int64_t columns, bool add, Stream& stream) {
  const dim3 grid(blocks_for(rows, kRows), blocks_for(columns, kWarpSize * Pack<T>::kSize));
  const auto in_bytes = static_cast<double>(rows * columns) * sizeof(T);
  const auto out_bytes = static_cast<double>(bias_blocks(rows) * columns) * sizeof(float);
  launch({"bias_gradient", in_bytes + (add ? 2 : 1) * out_bytes}, sum_rows_kernel<T>, grid,
         dim3(kThreads), 0, stream, out, x, rows, columns, in_packs<T>(columns, x), add);
}

}  // namespace

void add_bias_gradient(const Tensor& dbias, const Tensor& dy, Stream& stream) {
  const int64_t columns = dy.cols();
  CHECK(dbias.size() == columns, "{} of {}", dbias.shape().to_string(), dy.shape().to_string());
  if (dy.size() == 0) return;
  int64_t rows = dy.rows();
  const int64_t partial_bytes = bias_gradient_workspace_bytes(rows, columns);
  float* partials =
      partial_bytes == 0 ? nullptr : static_cast<float*>(stream.workspace(partial_bytes));
  float* total = dbias.as<float>();
  with_float_type(dy.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool last = rows <= kRows;
    sum_rows(last ? total : partials, dy.as<T>(), rows, columns, last, stream);
  });
  while (rows > kRows) {
    rows = bias_blocks(rows);
    const bool last = rows <= kRows;
    float* next = partials + rows * columns;
    sum_rows(last ? total : next, partials, rows, columns, last, stream);
    partials = next;
  }
}

}  // namespace lockstep::kernels::cuda
