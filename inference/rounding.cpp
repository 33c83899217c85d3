#include "inference/rounding.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/thread_pool.h"
#include "kernels/cpu/dots.h"

namespace lockstep {
namespace {

using kernels::QuantizedMatrix;

// The numbers that a group's weights can be: scale * (q - zero), 0 <= q <= largest.
struct Grid {
  float scale;
  int zero, largest;

  uint8_t nearest(float value) const {
    if (scale == 0) return static_cast<uint8_t>(zero);
    const auto q = static_cast<int>(std::lrint(value / scale)) + zero;
    return static_cast<uint8_t>(std::clamp(q, 0, largest));
  }
  float value(uint8_t q) const { return scale * static_cast<float>(q - zero); }
};

Grid grid_over(const float* values, int64_t count, int bits) {
  const auto [low, high] = std::minmax_element(values, values + count);
  const float least = std::min(*low, 0.0f), most = std::max(*high, 0.0f);
  const int largest = (1 << bits) - 1;
  const float scale = most / static_cast<float>(largest) - least / static_cast<float>(largest);
  if (scale == 0) return {0, 0, largest};
  return {scale, static_cast<int>(std::lrint(-least / scale)), largest};
}

void set_grid(const QuantizedMatrix& out, int64_t row, int64_t group, const Grid& grid) {
  out.scales[row * out.groups() + group] = grid.scale;
  out.zeros[row * out.groups() + group] = static_cast<uint8_t>(grid.zero);
}

void check_finite(const Tensor& weight) {
  const auto* values = weight.as<float>();
  for (int64_t i = 0; i < weight.size(); i++) {
    if (!std::isfinite(values[i])) {
      throw DataError("a weight is infinite or not a number: it cannot be quantized");
    }
  }
}

// The rows of C divided by their diagonals, where hessian + damping = C^T C: Cholesky from the last
// row to the first, kPanel rows at a time.
std::vector<float> correction_rows(std::vector<double> h, int64_t n) {
  constexpr int64_t kPanel = 32;
  constexpr double kDamping = 0.01;  // of the mean of the diagonal, as in the paper
  double mean = 0;
  for (int64_t i = 0; i < n; i++) mean += h[i * n + i] / static_cast<double>(n);
  if (!std::isfinite(mean)) throw DataError("an activation of the calibration is not finite");
  for (int64_t i = 0; i < n; i++) h[i * n + i] += mean > 0 ? kDamping * mean : 1;

  // row[0, count) -= factor * other[0, count)
  const auto subtract = [](double* row, double factor, const double* other, int64_t count) {
    for (int64_t j = 0; j < count; j++) row[j] -= factor * other[j];
  };
  for (int64_t end = n; end > 0; end -= std::min(end, kPanel)) {
    const int64_t begin = std::max<int64_t>(0, end - kPanel);
    for (int64_t i = end - 1; i >= begin; i--) {
      double* row = &h[i * n];
      for (int64_t k = i + 1; k < end; k++) subtract(row, h[k * n + i], &h[k * n], i + 1);
      const double diagonal = std::sqrt(row[i]);
      CHECK(diagonal > 0, "the damped Hessian is not positive definite");
      for (int64_t j = 0; j <= i; j++) row[j] /= diagonal;
    }
    parallel_for(begin, 8, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        for (int64_t k = begin; k < end; k++) subtract(&h[i * n], h[k * n + i], &h[k * n], i + 1);
      }
    });
  }
  std::vector<float> rows(n * n);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = 0; j < i; j++) {
      rows[i * n + j] = static_cast<float>(h[i * n + j] / h[i * n + i]);
    }
  }
  return rows;
}

// Rounds some rows of a matrix together, group by group.
class RowBlock {
 public:
  static constexpr int64_t kRows = 16;  // that share a pass over the corrections

  RowBlock(const QuantizedMatrix& out, const float* weight, const float* corrections, int64_t first,
           int64_t count)
      : out_(out),
        weight_(weight + first * out.inputs),
        corrections_(corrections),
        first_(first),
        count_(count),
        errors_(count * out.inputs),
        q_(count * out.inputs),
        from_before_(count * out.group_size) {}

  void run() {
    for (int64_t group = 0; group < out_.groups(); group++) round_group(group);
    for (int64_t r = 0; r < count_; r++) pack_row(out_, first_ + r, &q_[r * out_.inputs]);
  }

 private:
  // sums[r] = sum of C[i,j] e[j] / C[i,i] over begin <= j < end, for each row r.
  void correct(float* sums, int64_t i, int64_t begin, int64_t end) const {
    kernels::cpu::dots(sums, corrections_ + i * out_.inputs + begin, errors_.data() + begin,
                       out_.inputs, count_, end - begin);
  }

  // Calls round(row, input, where the errors before would have the weight), input by input; it
  // returns the number that the weight becomes.
  template <class F>
  void go_through(int64_t begin, F round) {
    for (int64_t i = begin; i < begin + out_.group_size; i++) {
      float sums[kRows];
      correct(sums, i, begin, i);
      for (int64_t r = 0; r < count_; r++) {
        const float weight = weight_[r * out_.inputs + i];
        const float target = weight + from_before_[(i - begin) * count_ + r] + sums[r];
        errors_[r * out_.inputs + i] = weight - round(r, i, target);
      }
    }
  }

  void round_group(int64_t group) {
    const int64_t begin = group * out_.group_size;
    for (int64_t k = 0; k < out_.group_size; k++) {
      correct(&from_before_[k * count_], begin + k, 0, begin);
    }
    // The range of the weights as the groups before would have them, were this one not rounded.
    std::vector<float> targets(count_ * out_.group_size);
    go_through(begin, [&](int64_t r, int64_t i, float target) {
      return targets[r * out_.group_size + i - begin] = target;
    });
    Grid grids[kRows];
    for (int64_t r = 0; r < count_; r++) {
      grids[r] = grid_over(&targets[r * out_.group_size], out_.group_size, out_.bits);
      set_grid(out_, first_ + r, group, grids[r]);
    }
    go_through(begin, [&](int64_t r, int64_t i, float target) {
      const uint8_t q = grids[r].nearest(target);
      q_[r * out_.inputs + i] = q;
      return grids[r].value(q);
    });
  }

  const QuantizedMatrix& out_;
  const float* weight_;
  const float* corrections_;
  const int64_t first_, count_;
  std::vector<float> errors_;       // (rows, I): e
  std::vector<uint8_t> q_;          // (rows, I)
  std::vector<float> from_before_;  // (group size, rows): corrections by earlier groups
};

}  // namespace

void round_to_nearest(const QuantizedMatrix& out, const Tensor& weight) {
  CHECK(weight.shape() == Shape({out.outputs, out.inputs}));
  check_finite(weight);
  parallel_for(out.outputs, 1, [&](int64_t row, int64_t) {
    const float* values = weight.as<float>() + row * out.inputs;
    std::vector<uint8_t> q(out.inputs);
    for (int64_t group = 0; group < out.groups(); group++) {
      const int64_t begin = group * out.group_size;
      const Grid grid = grid_over(values + begin, out.group_size, out.bits);
      set_grid(out, row, group, grid);
      for (int64_t i = begin; i < begin + out.group_size; i++) q[i] = grid.nearest(values[i]);
    }
    pack_row(out, row, q.data());
  });
}

void round_for_inputs(const QuantizedMatrix& out, const Tensor& weight,
                      std::vector<double> hessian) {
  CHECK(weight.shape() == Shape({out.outputs, out.inputs}));
  CHECK(static_cast<int64_t>(hessian.size()) == out.inputs * out.inputs);
  check_finite(weight);
  const std::vector<float> corrections = correction_rows(std::move(hessian), out.inputs);
  parallel_for(out.outputs, RowBlock::kRows, [&](int64_t first, int64_t end) {
    RowBlock(out, weight.as<float>(), corrections.data(), first, end - first).run();
  });
}

}  // namespace lockstep
