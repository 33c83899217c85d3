#include "kernels/cuda/norm_rows.cuh"
#include "kernels/cuda/workspace.h"
#include "kernels/layernorm.h"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kPacks = 4;  // of a row, that a thread keeps

template <class T, class Share>
__global__ void __launch_bounds__(kRowThreads)
    forward_kernel(T* y, float* __restrict__ mean, float* __restrict__ rstd, const T* x,
                   const T* added, T* sum_rows, const T* __restrict__ gain,
                   const T* __restrict__ bias, int64_t rows, Share share, float epsilon) {
  __shared__ float scratch[2][1][Share::kWarpsOfTeam];
  const int64_t row = int64_t{blockIdx.x} * Share::kTeams + Share::team();
  if (row >= rows) return;
  const int64_t at = row * share.channels;
  const HeldRow<T, Share> held = added == nullptr
                                     ? HeldRow<T, Share>(share, x + at)
                                     : HeldRow<T, Share>(share, sum_rows + at, x + at, added + at);
  const float count = static_cast<float>(share.channels);

  float sum[1] = {0};
#pragma unroll Share::kUnroll
  for (int k = 0; k < Share::kPacks; k++) {
    if (share.count(k) <= 0) break;
    const Pack<T> xs = held.pack(k);
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) sum[0] += widened(xs.value[i]);
  }
  team_sum(sum, scratch[0]);
  const float m = sum[0] / count;

  float squares[1] = {0};
#pragma unroll Share::kUnroll
  for (int k = 0; k < Share::kPacks; k++) {
    if (share.count(k) <= 0) break;
    const Pack<T> xs = held.pack(k);
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) {
      const float centred = i < share.count(k) ? widened(xs.value[i]) - m : 0.0f;
      squares[0] += centred * centred;
    }
  }
  team_sum(squares, scratch[1]);
  const float r = 1.0f / sqrtf(squares[0] / count + epsilon);

#pragma unroll Share::kUnroll
  for (int k = 0; k < Share::kPacks; k++) {
    if (share.count(k) <= 0) break;
    const Pack<T> xs = held.pack(k), gains = share.load(gain, k), biases = share.load(bias, k);
    Pack<T> out;
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) {
      out.value[i] = rounded<T>((widened(xs.value[i]) - m) * r * widened(gains.value[i]) +
                                widened(biases.value[i]));
    }
    share.store(y + at, k, out);
  }
  if (threadIdx.x % Share::kThreads == 0) mean[row] = m, rstd[row] = r;
}

template <class T, class Share>
__global__ void __launch_bounds__(kRowThreads, 3)
    backward_kernel(T* dx, float* __restrict__ partials, const T* __restrict__ dy,
                    const T* __restrict__ x, const T* __restrict__ gain,
                    const float* __restrict__ mean, const float* __restrict__ rstd, int64_t rows,
                    int64_t rows_each, Share share) {
  __shared__ float scratch[2][2][Share::kWarpsOfTeam];
  const int64_t channels = share.channels, first_row = blockIdx.x * rows_each;
  const int64_t end_row = first_row + rows_each < rows ? first_row + rows_each : rows;
  ColumnSums<T, Share, 2> columns(share, partials + blockIdx.x * 2 * channels);
  for (int64_t row = first_row + Share::team(); row < end_row; row += Share::kTeams) {
    const float m = mean[row], r = rstd[row];
    const int64_t at = row * channels;
    const HeldRow<T, Share> x_row(share, x + at), dy_row(share, dy + at);

    float sums[2] = {0, 0};  // of g and of g * h
#pragma unroll Share::kUnroll
    for (int k = 0; k < Share::kPacks; k++) {
      if (share.count(k) <= 0) break;
      const Pack<T> xs = x_row.pack(k), dys = dy_row.pack(k), gains = share.load(gain, k);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; i++) {
        const float g = widened(dys.value[i]) * widened(gains.value[i]);
        sums[0] += g;
        sums[1] += g * ((widened(xs.value[i]) - m) * r);
      }
    }
    team_sum(sums, scratch[row % 2]);
    const float count = static_cast<float>(share.channels);
    const float mean_g = sums[0] / count, mean_gh = sums[1] / count;

#pragma unroll Share::kUnroll
    for (int k = 0; k < Share::kPacks; k++) {
      if (share.count(k) <= 0) break;
      Pack<T> out = share.load(dx + at, k);
      const Pack<T> xs = x_row.pack(k), dys = dy_row.pack(k), gains = share.load(gain, k);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; i++) {
        const float upstream = widened(dys.value[i]);
        const float h = (widened(xs.value[i]) - m) * r;
        const float into_x = r * (upstream * widened(gains.value[i]) - mean_g - h * mean_gh);
        out.value[i] = rounded<T>(widened(out.value[i]) + into_x);
        columns.add(k, i, {upstream * h, upstream});
      }
      share.store(dx + at, k, out);
    }
  }
  columns.finish();
}

}  // namespace

void layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                       const ResidualSum& residual, const Tensor& gain, const Tensor& bias,
                       float epsilon, Stream& stream) {
  const int64_t rows = x.rows(), channels = x.cols();
  CHECK(residual.fits(x));
  CHECK(y.size() == x.size() && mean.size() == rows && rstd.size() == rows);
  CHECK(gain.size() == channels && bias.size() == channels);
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_row_share<T, kPacks>(channels, [&](auto share) {
      using Share = decltype(share);
      share.channels = static_cast<int>(channels);
      share.whole = in_packs<T>(channels, y.data(), x.data(), residual.added.data(),
                                residual.sum.data(), gain.data(), bias.data());
      launch({"layernorm_forward",
              bytes_of(y, mean, rstd, x, residual.added, residual.sum, gain, bias)},
             forward_kernel<T, Share>, dim3(blocks_for(rows, Share::kTeams)), dim3(kRowThreads), 0,
             stream, y.as<T>(), mean.as<float>(), rstd.as<float>(), x.as<T>(),
             data_or_null<T>(residual.added), data_or_null<T>(residual.sum), gain.as<T>(),
             bias.as<T>(), rows, share, epsilon);
    });
  });
}

void layernorm_backward(const Tensor& dx, const Tensor& dgain, const Tensor& dbias,
                        const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& mean,
                        const Tensor& rstd, Stream& stream) {
  const int64_t rows = x.rows(), channels = x.cols();
  CHECK(dx.size() == x.size() && dy.size() == x.size());
  CHECK(mean.size() == rows && rstd.size() == rows);
  CHECK(gain.size() == channels && dgain.size() == channels && dbias.size() == channels);
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_row_share<T, kPacks>(channels, [&](auto share) {
      using Share = decltype(share);
      share.channels = static_cast<int>(channels);
      share.whole = in_packs<T>(channels, dx.data(), dy.data(), x.data(), gain.data());
      const RowBlocks blocks(rows, Share::kTeams);
      auto* partials =
          static_cast<float*>(stream.workspace(norm_workspace_bytes(rows, channels, 2)));
      const double moved = bytes_of(dx, dx, dy, x, gain, mean, rstd);
      launch({"layernorm_backward", moved + partial_bytes(blocks.count, 2, channels)},
             backward_kernel<T, Share>, dim3(static_cast<unsigned>(blocks.count)),
             dim3(kRowThreads), 0, stream, dx.as<T>(), partials, dy.as<T>(), x.as<T>(),
             gain.as<T>(), mean.as<float>(), rstd.as<float>(), rows, blocks.rows_each, share);
      add_partials(dgain.as<float>(), dbias.as<float>(), partials, blocks.count, channels, stream);
    });
  });
}

}  // namespace lockstep::kernels::cuda
