#include "kernels/activation.h"

#include <array>

#include "core/profile.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/rows.h"
#include "kernels/work.h"

namespace lockstep::kernels {
namespace {

constexpr std::array<std::string_view, 6> kNames = {"relu", "sigmoid",   "tanh",
                                                    "gelu", "gelu_tanh", "silu"};

}  // namespace

std::string_view name(Activation activation) { return kNames[static_cast<size_t>(activation)]; }

std::optional<Activation> activation_from_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); i++) {
    if (kNames[i] == name) return static_cast<Activation>(i);
  }
  return std::nullopt;
}

}  // namespace lockstep::kernels

namespace lockstep::kernels::cpu {
namespace {

// f(x) and f'(x); the compiler drops the one that a caller does not use. Where a derivative holds a
// product of x with something that vanishes faster, x is limited first: no infinity times zero.
struct Point {
  float value, slope;
};

struct Relu {
  LOCKSTEP_INLINE static Point at(float x) {
    return {x < 0.0f ? 0.0f : x, x <= 0.0f ? 0.0f : 1.0f};
  }
};

struct Sigmoid {
  LOCKSTEP_INLINE static Point at(float x) { return at(x, math::exp(-math::detail::magnitude(x))); }
  // With e = e^-|x|.
  LOCKSTEP_INLINE static Point at(float x, float e) {
    const float r = 1.0f / (1.0f + e);
    return {(x < 0.0f ? e : 1.0f) * r, e * r * r};  // s (1 - s) without the cancellation
  }
};

struct Tanh {
  LOCKSTEP_INLINE static Point at(float x) {
    // 1 - tanh^2 without the cancellation.
    const float e = math::exp(-2.0f * math::detail::magnitude(x));
    return {math::tanh(x), 4.0f * e / ((1.0f + e) * (1.0f + e))};
  }
};

struct Gelu {
  LOCKSTEP_INLINE static Point at(float x) {
    const auto [cumulative, density] = math::normal(x);
    return {x * cumulative, cumulative + math::detail::clamp(x, -20.0f, 20.0f) * density};
  }
};

struct GeluTanh {
  LOCKSTEP_INLINE static Point at(float x) {
    // (1 + tanh u) / 2 = sigmoid(2 u), which keeps its precision where u is negative.
    constexpr float kTwoRootTwoOverPi = 1.59576912f;
    const float z = math::detail::clamp(x, -16.0f, 16.0f);
    const float t = kTwoRootTwoOverPi * (z + 0.044715f * z * z * z);
    const Point s = Sigmoid::at(t, math::exp_of_negative(-math::detail::magnitude(t)));
    const float inner_slope = kTwoRootTwoOverPi * (1.0f + 3.0f * 0.044715f * z * z);
    return {x * s.value, s.value + z * s.slope * inner_slope};
  }
};

struct Silu {
  LOCKSTEP_INLINE static Point at(float x) {
    const float z = math::detail::clamp(x, -120.0f, 120.0f);
    const Point s = Sigmoid::at(z, math::exp_of_negative(-math::detail::magnitude(z)));
    return {x * s.value, s.value + z * s.slope};
  }
};

// Calls f(F{}) with the struct of that activation.
template <class F>
void with_activation(Activation activation, F&& f) {
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

template <class F, class T>
LOCKSTEP_CLONES void forward_run(T* y, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] = from_float<T>(F::at(to_float(x[i])).value);
}

template <class F, class T>
LOCKSTEP_CLONES void backward_run(T* dx, const T* dy, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    dx[i] = from_float<T>(to_float(dy[i]) * F::at(to_float(x[i])).slope);
  }
}

template <class F, class T>
LOCKSTEP_CLONES void gated_forward_row(T* y, const T* gate, const T* up, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    y[i] = from_float<T>(F::at(to_float(gate[i])).value * to_float(up[i]));
  }
}

template <class F, class T>
LOCKSTEP_CLONES void gated_backward_row(T* dgate, T* dup, const T* dy, const T* gate, const T* up,
                                        int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const Point f = F::at(to_float(gate[i]));
    const float upstream = to_float(dy[i]);
    const float into_gate = upstream * to_float(up[i]) * f.slope;
    dup[i] = from_float<T>(upstream * f.value);
    dgate[i] = from_float<T>(into_gate);
  }
}

}  // namespace

void activation_forward(const Tensor& y, const Tensor& x, Activation activation, Stream&) {
  CHECK(y.size() == x.size());
  const ProfileScope scope({"activation_forward", bytes_of(y, x)});
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_activation(activation, [&](auto f) {
      parallel_for(x.size(), kElementGrain, [&](int64_t begin, int64_t end) {
        forward_run<decltype(f)>(y.as<T>() + begin, x.as<T>() + begin, end - begin);
      });
    });
  });
}

void activation_backward(const Tensor& dx, const Tensor& dy, const Tensor& x, Activation activation,
                         Stream&) {
  CHECK(dx.size() == x.size() && dy.size() == x.size());
  const ProfileScope scope({"activation_backward", bytes_of(dx, dy, x)});
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_activation(activation, [&](auto f) {
      parallel_for(x.size(), kElementGrain, [&](int64_t begin, int64_t end) {
        backward_run<decltype(f)>(dx.as<T>() + begin, dy.as<T>() + begin, x.as<T>() + begin,
                                  end - begin);
      });
    });
  });
}

void gated_activation_forward(const Tensor& y, const Tensor& gate_up, Activation activation,
                              Stream&) {
  const int64_t width = y.cols();
  CHECK(gate_up.cols() == 2 * width && gate_up.rows() == y.rows());
  const ProfileScope scope({"gated_activation_forward", bytes_of(y, gate_up)});
  with_float_type(y.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_activation(activation, [&](auto f) {
      parallel_for(y.rows(), kRowGrain, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; n++) {
          const T* row = gate_up.as<T>() + n * 2 * width;
          gated_forward_row<decltype(f)>(y.as<T>() + n * width, row, row + width, width);
        }
      });
    });
  });
}

void gated_activation_backward(const Tensor& dgate_up, const Tensor& dy, const Tensor& gate_up,
                               Activation activation, Stream&) {
  const int64_t width = dy.cols();
  CHECK(gate_up.cols() == 2 * width && gate_up.rows() == dy.rows());
  CHECK(dgate_up.size() == gate_up.size());
  const ProfileScope scope({"gated_activation_backward", bytes_of(dgate_up, dy, gate_up)});
  with_float_type(dy.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_activation(activation, [&](auto f) {
      parallel_for(dy.rows(), kRowGrain, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; n++) {
          const T* row = gate_up.as<T>() + n * 2 * width;
          T* into = dgate_up.as<T>() + n * 2 * width;
          gated_backward_row<decltype(f)>(into, into + width, dy.as<T>() + n * width, row,
                                          row + width, width);
        }
      });
    });
  });
}

}  // namespace lockstep::kernels::cpu
