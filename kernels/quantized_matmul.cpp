#include "kernels/quantized_matmul.h"

#include <algorithm>

#include "core/range.h"
#include "core/thread_pool.h"
#include "kernels/cpu/quantized_dots.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"

namespace lockstep::kernels {
namespace {

// Calls f(output's word w of its group g, k, the input that stands there).
template <class F>
void for_places(const QuantizedMatrix& m, F f) {
  const int64_t width = m.words_of_group();
  for (int64_t g = 0; g < m.groups(); g++) {
    for (int64_t j = 0; j < width; j++) {
      for (int k = 0; k < 32 / m.bits; k++) {
        f(g * width + j, k * m.bits, g * m.group_size + k * width + j);
      }
    }
  }
}

}  // namespace

void pack_row(const QuantizedMatrix& weight, int64_t output, const uint8_t* q) {
  uint32_t* words = weight.words + output * weight.words_of_row();
  std::fill_n(words, weight.words_of_row(), 0u);
  for_places(weight, [&](int64_t word, int shift, int64_t input) {
    words[word] |= uint32_t{q[input]} << shift;
  });
}

void unpack_row(const QuantizedMatrix& weight, int64_t output, uint8_t* q) {
  const uint32_t* words = weight.words + output * weight.words_of_row();
  const uint32_t mask = (1u << weight.bits) - 1;
  for_places(weight, [&](int64_t word, int shift, int64_t input) {
    q[input] = static_cast<uint8_t>(words[word] >> shift & mask);
  });
}

namespace cpu {
namespace {

// The rows of x, rounded.
class RoundedInputs {
 public:
  template <class T>
  RoundedInputs(const QuantizedDots& functions, const QuantizedMatrix& weight, const T* x,
                int64_t rows)
      : inputs_(weight.inputs),
        blocks_(weight.inputs / std::min(kQuantizedBlock, weight.group_size)),
        groups_(weight.groups()) {
    static thread_local Scratch numbers, scales, sums;
    numbers_ = numbers.get<int16_t>(rows * inputs_);
    scales_ = scales.get<float>(rows * blocks_);
    sums_ = sums.get<float>(rows * groups_);
    parallel_for(rows, 1, [&](int64_t n, int64_t) {
      static thread_local Scratch wide_scratch;
      float* wide = wide_scratch.get<float>(inputs_);
      widen(wide, x + n * inputs_, inputs_);
      functions.round(row(n), wide, weight);
    });
  }

  RoundedRow row(int64_t n) const {
    return {numbers_ + n * inputs_, scales_ + n * blocks_, sums_ + n * groups_};
  }

 private:
  int64_t inputs_, blocks_, groups_;
  int16_t* numbers_;
  float *scales_, *sums_;
};

// Outputs a task. It reads them as kDotRows streams of neighbouring rows, because a processor
// fetches ahead within a page, of several pages at once: one stream alone gets two thirds of what
// memory gives, and short ones end when it has begun to. The number may depend on threads: outputs
// do not depend on each other.
int64_t outputs_of_task(const QuantizedMatrix& weight) {
  constexpr int64_t kStreamBytes = 128 << 10;
  const int64_t of_stream = kStreamBytes / (4 * weight.words_of_row());
  const int64_t of_share = pieces(weight.outputs, 2 * kDotRows * num_threads());
  return kDotRows * std::max<int64_t>(4, std::min(of_stream, of_share));
}

template <class T>
void forward(T* y, const T* x, int64_t rows, const QuantizedMatrix& weight, const T* bias) {
  const QuantizedDots functions = quantized_dots_for(weight);
  const RoundedInputs inputs(functions, weight, x, rows);
  parallel_for(weight.outputs, outputs_of_task(weight), [&](int64_t first, int64_t end) {
    const int64_t apart = pieces(end - first, kDotRows);
    for (int64_t i = first; i < first + apart; i++) {
      QuantizedRow four[kDotRows];  // short at the end: the last row again
      for (int64_t j = 0; j < kDotRows; j++) {
        const int64_t o = std::min(i + j * apart, end - 1);
        four[j] = {weight.words + o * weight.words_of_row(), weight.scales + o * weight.groups(),
                   weight.zeros + o * weight.groups()};
      }
      for (int64_t n = 0; n < rows; n++) {
        float results[kDotRows];
        functions.dots(results, inputs.row(n), four, weight);
        for (int64_t o = i, j = 0; j < kDotRows && o < end; j++, o += apart) {
          const float added = bias == nullptr ? 0 : to_float(bias[o]);
          y[n * weight.outputs + o] = from_float<T>(results[j] + added);
        }
      }
    }
  });
}

}  // namespace

void quantized_linear_forward(const Tensor& y, const Tensor& x, const QuantizedMatrix& weight,
                              const Tensor& bias, Stream& stream) {
  CHECK(stream.device() == Device::cpu);
  CHECK(x.rows() == y.rows() && x.cols() == weight.inputs && y.cols() == weight.outputs,
        "{} = {} x ({}, {})", y.shape().to_string(), x.shape().to_string(), weight.outputs,
        weight.inputs);
  CHECK(weight.bits == 8 || weight.bits == 4, "{} bits", weight.bits);
  CHECK(is_group_size(weight.group_size) && weight.inputs % weight.group_size == 0,
        "groups of {} in {} inputs", weight.group_size, weight.inputs);
  CHECK(x.dtype() == y.dtype());
  CHECK(bias.empty() || (bias.size() == weight.outputs && bias.dtype() == x.dtype()));
  with_float_type(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward(y.as<T>(), x.as<T>(), x.rows(), weight, bias.empty() ? nullptr : bias.as<T>());
  });
}

}  // namespace cpu
}  // namespace lockstep::kernels
