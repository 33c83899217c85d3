#include "kernels/cuda/norm_rows.cuh"
#include "kernels/cuda/workspace.h"
#include "kernels/rmsnorm.h"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kPacks = 4;  // of a row, that a thread keeps

template <class T, class Share>
__global__ void __launch_bounds__(kRowThreads)
    forward_kernel(T* y, float* __restrict__ inv_rms, const T* x, const T* added, T* sum_rows,
                   const T* __restrict__ gain, int64_t rows, Share share, float epsilon) {
  __shared__ float scratch[1][Share::kWarpsOfTeam];
  const int64_t row = int64_t{blockIdx.x} * Share::kTeams + Share::team();
  if (row >= rows) return;
  const int64_t at = row * share.channels;
  const HeldRow<T, Share> held = added == nullptr
                                     ? HeldRow<T, Share>(share, x + at)
                                     : HeldRow<T, Share>(share, sum_rows + at, x + at, added + at);

  float squares[1] = {0};
#pragma unroll Share::kUnroll
  for (int k = 0; k < Share::kPacks; k++) {
    if (share.count(k) <= 0) break;
    const Pack<T> xs = held.pack(k);
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) {
      squares[0] += widened(xs.value[i]) * widened(xs.value[i]);
    }
  }
  team_sum(squares, scratch);
  const float r = 1.0f / sqrtf(squares[0] / static_cast<float>(share.channels) + epsilon);

#pragma unroll Share::kUnroll
  for (int k = 0; k < Share::kPacks; k++) {
    if (share.count(k) <= 0) break;
    const Pack<T> xs = held.pack(k), gains = share.load(gain, k);
    Pack<T> out;
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) {
      out.value[i] = rounded<T>(widened(xs.value[i]) * r * widened(gains.value[i]));
    }
    share.store(y + at, k, out);
  }
  if (threadIdx.x % Share::kThreads == 0) inv_rms[row] = r;
}

template <class T, class Share>
__global__ void __launch_bounds__(kRowThreads, 3)
    backward_kernel(T* dx, float* __restrict__ partials, const T* __restrict__ dy,
                    const T* __restrict__ x, const T* __restrict__ gain,
                    const float* __restrict__ inv_rms, int64_t rows, int64_t rows_each,
                    Share share) {
  __shared__ float scratch[2][1][Share::kWarpsOfTeam];
  const int64_t channels = share.channels, first_row = blockIdx.x * rows_each;
  const int64_t end_row = first_row + rows_each < rows ? first_row + rows_each : rows;
  ColumnSums<T, Share, 1> columns(share, partials + blockIdx.x * channels);
  for (int64_t row = first_row + Share::team(); row < end_row; row += Share::kTeams) {
    const float r = inv_rms[row];
    const int64_t at = row * channels;
    const HeldRow<T, Share> x_row(share, x + at), dy_row(share, dy + at);

    float sum[1] = {0};
#pragma unroll Share::kUnroll
    for (int k = 0; k < Share::kPacks; k++) {
      if (share.count(k) <= 0) break;
      const Pack<T> xs = x_row.pack(k), dys = dy_row.pack(k), gains = share.load(gain, k);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; i++) {
        sum[0] += widened(dys.value[i]) * widened(gains.value[i]) * (widened(xs.value[i]) * r);
      }
    }
    team_sum(sum, scratch[row % 2]);
    const float mean = sum[0] / static_cast<float>(channels);

#pragma unroll Share::kUnroll
    for (int k = 0; k < Share::kPacks; k++) {
      if (share.count(k) <= 0) break;
      Pack<T> out = share.load(dx + at, k);
      const Pack<T> xs = x_row.pack(k), dys = dy_row.pack(k), gains = share.load(gain, k);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; i++) {
        const float upstream = widened(dys.value[i]);
        const float h = widened(xs.value[i]) * r;
        const float into_x = r * (upstream * widened(gains.value[i]) - h * mean);
        out.value[i] = rounded<T>(widened(out.value[i]) + into_x);
        columns.add(k, i, {upstream * h});
      }
      share.store(dx + at, k, out);
    }
  }
  columns.finish();
}

}  // namespace

void rmsnorm_forward(const Tensor& y, const Tensor& inv_rms, const Tensor& x,
                     const ResidualSum& residual, const Tensor& gain, float epsilon,
                     Stream& stream) {
  const int64_t rows = x.rows(), channels = x.cols();
  CHECK(residual.fits(x));
  CHECK(y.size() == x.size() && inv_rms.size() == rows && gain.size() == channels);
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_row_share<T, kPacks>(channels, [&](auto share) {
      using Share = decltype(share);
      share.channels = static_cast<int>(channels);
      share.whole = in_packs<T>(channels, y.data(), x.data(), residual.added.data(),
                                residual.sum.data(), gain.data());
      launch({"rmsnorm_forward", bytes_of(y, inv_rms, x, residual.added, residual.sum, gain)},
             forward_kernel<T, Share>, dim3(blocks_for(rows, Share::kTeams)), dim3(kRowThreads), 0,
             stream, y.as<T>(), inv_rms.as<float>(), x.as<T>(), data_or_null<T>(residual.added),
             data_or_null<T>(residual.sum), gain.as<T>(), rows, share, epsilon);
    });
  });
}

void rmsnorm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dy, const Tensor& x,
                      const Tensor& gain, const Tensor& inv_rms, Stream& stream) {
  const int64_t rows = x.rows(), channels = x.cols();
  CHECK(dx.size() == x.size() && dy.size() == x.size() && inv_rms.size() == rows);
  CHECK(gain.size() == channels && dgain.size() == channels);
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_row_share<T, kPacks>(channels, [&](auto share) {
      using Share = decltype(share);
      share.channels = static_cast<int>(channels);
      share.whole = in_packs<T>(channels, dx.data(), dy.data(), x.data(), gain.data());
      const RowBlocks blocks(rows, Share::kTeams);
      auto* partials =
          static_cast<float*>(stream.workspace(norm_workspace_bytes(rows, channels, 1)));
      const double moved = bytes_of(dx, dx, dy, x, gain, inv_rms);
      launch({"rmsnorm_backward", moved + partial_bytes(blocks.count, 1, channels)},
             backward_kernel<T, Share>, dim3(static_cast<unsigned>(blocks.count)),
             dim3(kRowThreads), 0, stream, dx.as<T>(), partials, dy.as<T>(), x.as<T>(),
             gain.as<T>(), inv_rms.as<float>(), rows, blocks.rows_each, share);
      add_partials(dgain.as<float>(), nullptr, partials, blocks.count, channels, stream);
    });
  });
}

}  // namespace lockstep::kernels::cuda
