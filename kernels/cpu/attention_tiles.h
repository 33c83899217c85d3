#pragma once
#include <cmath>

#include "core/range.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/products.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/dropout.h"

// What attention's forward, backward and generation share: tiles of queries by keys, of sizes that
// do not depend on the length of the sequence, so that neither do the bits of their products.
namespace lockstep::kernels::cpu {

inline constexpr int64_t kTileQueries = 64;  // short tiles are filled up with zeros
inline constexpr int64_t kTileKeys = 256;    // at most; a multiple of kKeyStep
inline constexpr int64_t kKeyStep = 64;

// Rows of one head: `stride` elements from token to token.
struct HeadRows {
  void* data = nullptr;
  DType dtype = DType::fp32;
  int64_t stride = 0;

  HeadRows from(int64_t token) const {
    return {static_cast<char*>(data) + token * stride * size_bytes(dtype), dtype, stride};
  }
};

// The `count` first rows, in `type`, without gaps, followed by rows of zeros up to `filled` rows.
// Lives until the next call with the same scratch.
const void* gather(Scratch& scratch, const HeadRows& rows, int64_t count, int64_t filled,
                   int64_t head_dim, DType type);
// The same into `out`, which has room for `filled` rows.
void gather(void* out, const HeadRows& rows, int64_t count, int64_t filled, int64_t head_dim,
            DType type);

// Gathered rows in the order in which they are the columns of a product: of fp32, the transpose
// (D, kKeyStep) of each kKeyStep rows, in `scratch`; `rows` itself of other types. `count` is a
// multiple of kKeyStep.
const void* as_columns(Scratch& scratch, const void* rows, int64_t count, int64_t head_dim,
                       DType type);

// rows[n] = factor * values[n], rounded; values (count, head_dim) without gaps.
void scatter(const HeadRows& rows, const float* values, int64_t count, int64_t head_dim,
             float factor);

// values[i] of the scores of one query, i < valid, become probabilities, times the dropout factors
// if there are any, rounded to T and stored as P; those in [valid, count) become zero. Returns the
// sum of the probabilities, without dropout.
//   exp(scale * scores[i] - shift)
template <class T, class P>
float probabilities(P* out, float* scores, const float* factors, float scale, float shift,
                    int64_t valid, int64_t count);

// As above for `probability`, and the gradient of the scaled scores, with gradient = dy . v:
//   score_gradient[i] = p[i] * (factors[i] * gradient[i] - delta)
template <class T, class P>
void probabilities_and_gradient(P* probability, P* score_gradient, float* scores,
                                const float* gradient, const float* factors, float scale, float lse,
                                float delta, int64_t valid, int64_t count);

// The dropout factors of probabilities: 1 / (1 - p) or 0. The place of p[h,t,u] within a sequence
// is (h * T + t) * T + u.
class ProbabilityMask {
 public:
  ProbabilityMask() = default;
  ProbabilityMask(const DropoutMask& mask, int64_t sequence, int64_t head, int64_t tokens)
      : mask_(mask), sequence_(sequence), head_(head), tokens_(tokens) {}

  // Of query t and keys [first, first + count), count <= kTileKeys; none without dropout. Lives
  // until the thread's next call.
  const float* factors(int64_t t, int64_t first, int64_t count) const;

 private:
  DropoutMask mask_;
  int64_t sequence_ = 0, head_ = 0, tokens_ = 0;
};

}  // namespace lockstep::kernels::cpu
