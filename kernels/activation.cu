#include "kernels/activation.h"
#include "kernels/cuda/packs.cuh"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// f(x) and f'(x); the compiler drops the one that a caller does not use. Where a derivative holds a
// product of x with something that vanishes faster, x is limited first: no infinity times zero.
struct Point {
  float value, slope;
};

__device__ inline float clamp(float x, float low, float high) {  // keeps NaN
  x = x < low ? low : x;
  return x > high ? high : x;
}

struct Relu {
  __device__ static Point at(float x) { return {x < 0.0f ? 0.0f : x, x <= 0.0f ? 0.0f : 1.0f}; }
};

struct Sigmoid {
  __device__ static Point at(float x) {
    // s (1 - s) without the cancellation.
    const float e = expf(-fabsf(x)), r = 1.0f / (1.0f + e);
    return {(x < 0.0f ? e : 1.0f) * r, e * r * r};
  }
};

struct Tanh {
  __device__ static Point at(float x) {
    // 1 - tanh^2 without the cancellation.
    const float e = expf(-2.0f * fabsf(x));
    return {tanhf(x), 4.0f * e / ((1.0f + e) * (1.0f + e))};
  }
};

struct Gelu {
  __device__ static Point at(float x) {
    const float cumulative = 0.5f * erfcf(-0.707106781f * x);
    const float density = 0.398942280f * expf(-0.5f * (x * x));
    return {x * cumulative, cumulative + clamp(x, -20.0f, 20.0f) * density};
  }
};

struct GeluTanh {
  __device__ static Point at(float x) {
    // (1 + tanh u) / 2 = sigmoid(2 u), which keeps its precision where u is negative.
    constexpr float kTwoRootTwoOverPi = 1.59576912f;
    const float z = clamp(x, -16.0f, 16.0f);
    const Point s = Sigmoid::at(kTwoRootTwoOverPi * (z + 0.044715f * z * z * z));
    const float inner_slope = kTwoRootTwoOverPi * (1.0f + 3.0f * 0.044715f * z * z);
    return {x * s.value, s.value + z * s.slope * inner_slope};
  }
};

struct Silu {
  __device__ static Point at(float x) {
    const Point s = Sigmoid::at(x);
    return {x * s.value, s.value + clamp(x, -120.0f, 120.0f) * s.slope};
  }
};

// Calls f(F{}) with the struct of that activation.
template <class Body>
__device__ void with_activation(Activation activation, Body f) {
  switch (activation) {
    case Activation::relu:
      return f(Relu{});
    case Activation::sigmoid:
      return f(Sigmoid{});
    case Activation::tanh:
      return f(Tanh{});
    case Activation::gelu:
      return f(Gelu{});
    case Activation::gelu_tanh:
      return f(GeluTanh{});
    case Activation::silu:
      return f(Silu{});
  }
}

// A thread of these kernels has one pack; outputs may be inputs, so it reads all before it writes.
// The flat kernels take a whole tensor as one row.

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T* y, const T* x, int64_t size, bool whole, Activation activation) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * Pack<T>::kSize;
  if (at >= size) return;
  Pack<T> pack = load_pack(x + at, size - at, whole);
  with_activation(activation, [&](auto f) {
#pragma unroll
    for (T& value : pack.value) value = rounded<T>(decltype(f)::at(widened(value)).value);
  });
  store_pack(y + at, pack, size - at, whole);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(T* dx, const T* dy, const T* x, int64_t size, bool whole,
                    Activation activation) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * Pack<T>::kSize;
  if (at >= size) return;
  const Pack<T> xs = load_pack(x + at, size - at, whole);
  Pack<T> pack = load_pack(dy + at, size - at, whole);
  with_activation(activation, [&](auto f) {
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) {
      const float slope = decltype(f)::at(widened(xs.value[i])).slope;
      pack.value[i] = rounded<T>(widened(pack.value[i]) * slope);
    }
  });
  store_pack(dx + at, pack, size - at, whole);
}

// Where the n-th pack of rows of that width is.
template <class T>
struct GatedPlace {
  int64_t row, column, count;
  __device__ GatedPlace(int64_t n, int64_t width) {
    const int64_t packs = pieces(width, Pack<T>::kSize);
    row = n / packs;
    column = (n - row * packs) * Pack<T>::kSize;
    count = width - column;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    gated_forward_kernel(T* y, const T* gate_up, int64_t packs, int64_t width, bool whole,
                         Activation activation) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= packs) return;
  const auto [row, column, count] = GatedPlace<T>(n, width);
  const T* gate = gate_up + row * 2 * width + column;
  const Pack<T> gates = load_pack(gate, count, whole), ups = load_pack(gate + width, count, whole);
  Pack<T> out{};
  with_activation(activation, [&](auto f) {
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) {
      const float value = decltype(f)::at(widened(gates.value[i])).value;
      out.value[i] = rounded<T>(value * widened(ups.value[i]));
    }
  });
  store_pack(y + row * width + column, out, count, whole);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gated_backward_kernel(T* dgate_up, const T* dy, const T* gate_up, int64_t packs, int64_t width,
                          bool whole, Activation activation) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= packs) return;
  const auto [row, column, count] = GatedPlace<T>(n, width);
  const T* gate = gate_up + row * 2 * width + column;
  Pack<T> gates = load_pack(gate, count, whole), ups = load_pack(gate + width, count, whole);
  const Pack<T> dys = load_pack(dy + row * width + column, count, whole);
  with_activation(activation, [&](auto f) {
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; i++) {
      const auto [value, slope] = decltype(f)::at(widened(gates.value[i]));
      const float upstream = widened(dys.value[i]);
      gates.value[i] = rounded<T>(upstream * widened(ups.value[i]) * slope);
      ups.value[i] = rounded<T>(upstream * value);
    }
  });
  T* dgate = dgate_up + row * 2 * width + column;
  store_pack(dgate, gates, count, whole);
  store_pack(dgate + width, ups, count, whole);
}

}  // namespace

void activation_forward(const Tensor& y, const Tensor& x, Activation activation, Stream& stream) {
  CHECK(y.size() == x.size());
  const int64_t size = x.size();
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch({"activation_forward", bytes_of(y, x)}, forward_kernel<T>,
           dim3(blocks_for(size, kThreads * Pack<T>::kSize)), dim3(kThreads), 0, stream, y.as<T>(),
           x.as<T>(), size, in_packs<T>(size, y.data(), x.data()), activation);
  });
}

void activation_backward(const Tensor& dx, const Tensor& dy, const Tensor& x, Activation activation,
                         Stream& stream) {
  CHECK(dx.size() == x.size() && dy.size() == x.size());
  const int64_t size = x.size();
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch({"activation_backward", bytes_of(dx, dy, x)}, backward_kernel<T>,
           dim3(blocks_for(size, kThreads * Pack<T>::kSize)), dim3(kThreads), 0, stream, dx.as<T>(),
           dy.as<T>(), x.as<T>(), size, in_packs<T>(size, dx.data(), dy.data(), x.data()),
           activation);
  });
}

void gated_activation_forward(const Tensor& y, const Tensor& gate_up, Activation activation,
                              Stream& stream) {
  const int64_t width = y.cols();
  CHECK(gate_up.cols() == 2 * width && gate_up.rows() == y.rows());
  with_float_type(y.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t packs = y.rows() * pieces(width, Pack<T>::kSize);
    launch({"gated_activation_forward", bytes_of(y, gate_up)}, gated_forward_kernel<T>,
           dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, y.as<T>(), gate_up.as<T>(),
           packs, width, in_packs<T>(width, y.data(), gate_up.data()), activation);
  });
}

void gated_activation_backward(const Tensor& dgate_up, const Tensor& dy, const Tensor& gate_up,
                               Activation activation, Stream& stream) {
  const int64_t width = dy.cols();
  CHECK(gate_up.cols() == 2 * width && gate_up.rows() == dy.rows());
  CHECK(dgate_up.size() == gate_up.size());
  with_float_type(dy.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t packs = dy.rows() * pieces(width, Pack<T>::kSize);
    launch({"gated_activation_backward", bytes_of(dgate_up, dy, gate_up)}, gated_backward_kernel<T>,
           dim3(blocks_for(packs, kThreads)), dim3(kThreads), 0, stream, dgate_up.as<T>(),
           dy.as<T>(), gate_up.as<T>(), packs, width,
           in_packs<T>(width, dgate_up.data(), dy.data(), gate_up.data()), activation);
  });
}

}  // namespace lockstep::kernels::cuda
