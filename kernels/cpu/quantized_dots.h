#pragma once
#include "core/tensor.h"
#include "kernels/quantized_matmul.h"

// Dot products of rows of activations with rows of a quantized matrix, by integers. A block of
// activations (those of min(128, G) inputs whose numbers share words) is rounded to 16 bits under
// its largest,
//
//   x[i] = s[b] * r[i] + e      s[b] = max |x| / 32767, |r| <= 32767, |e| <= s[b] / 2
//   y[o] = sum_b s[b] * scale[o,g] * (sum_{i in b} q[o,i] * r[i])
//          - sum_g scale[o,g] * zero[o,g] * X[g]
//
// where the sums in parentheses are exact, and X[g] is the sum of s[b] * r[i] over group g. Two
// products of 16 bits and their sum are one instruction a lane, where fp32 needs each q made a
// float and two multiply-adds. e is at most 1 / 65534 of the block's largest activation: bf16
// rounds that one by up to 1 / 512. An output's bits are the same whichever of the kDotRows places
// its row has.
namespace lockstep::kernels::cpu {

inline constexpr int64_t kDotRows = 4;           // rows of the matrix at a time
inline constexpr int64_t kQuantizedBlock = 128;  // inputs of a block, where a group has as many

// A row of the matrix.
struct QuantizedRow {
  const uint32_t* words;
  const float* scales;
  const uint8_t* zeros;
};

// A row of activations.
struct RoundedRow {
  int16_t* numbers;  // (I) r, in the order in which the numbers of words are unpacked
  float* scales;     // (I / min(kQuantizedBlock, G)) s
  float* sums;       // (I / G) X
};

// The functions for one matrix on this machine.
struct QuantizedDots {
  // A row that is not finite gets scales of NaN.
  void (*round)(const RoundedRow& out, const float* x, const QuantizedMatrix& weight);
  // out[j] = x . rows[j] for j < kDotRows
  void (*dots)(float* out, const RoundedRow& x, const QuantizedRow* rows,
               const QuantizedMatrix& weight);
};
// With the widest vectors that the machine has and the matrix fills, of at most `lanes` words.
QuantizedDots quantized_dots_for(const QuantizedMatrix& weight, int64_t lanes = 16);

}  // namespace lockstep::kernels::cpu
