#include "kernels/embedding.h"

#include <algorithm>
#include <vector>

#include "core/profile.h"
#include "kernels/cpu/rows.h"
#include "kernels/work.h"

namespace lockstep::kernels::cpu {
namespace {

template <class T>
LOCKSTEP_CLONES void add_rows(T* out, const T* a, const T* b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}

template <class T>
LOCKSTEP_CLONES void accumulate_row(float* out, const T* row, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] += to_float(row[i]);
}

// The places of each token, in order: places[first[k] .. first[k + 1]) hold the k-th token.
struct TokenPlaces {
  std::vector<uint64_t> sorted;  // token, then place
  std::vector<int64_t> first;

  TokenPlaces(const int32_t* tokens, int64_t count) : sorted(count) {
    for (int64_t n = 0; n < count; n++) {
      sorted[n] = uint64_t{static_cast<uint32_t>(tokens[n])} << 32 | static_cast<uint64_t>(n);
    }
    std::sort(sorted.begin(), sorted.end());
    for (int64_t i = 0; i < count; i++) {
      if (i == 0 || token(i) != token(i - 1)) first.push_back(i);
    }
    first.push_back(count);
  }
  int64_t token(int64_t i) const { return static_cast<int64_t>(sorted[i] >> 32); }
  int64_t place(int64_t i) const { return static_cast<int64_t>(sorted[i] & 0xffffffffu); }
  int64_t distinct() const { return static_cast<int64_t>(first.size()) - 1; }
};

// The rows of the position table that a sequence takes; none where the model has none.
Tensor positions_read(const Tensor& position_table, int64_t length) {
  return position_table.empty() ? Tensor() : position_table.slice(0, length);
}

}  // namespace

void embedding_forward(const Tensor& y, const Tensor& tokens, const Tensor& token_table,
                       const Tensor& position_table, int64_t first_position, Stream&) {
  const int64_t length = tokens.cols(), channels = y.cols();
  CHECK(y.rows() == tokens.size() && token_table.cols() == channels);
  if (!position_table.empty()) {
    CHECK(position_table.cols() == channels);
    CHECK(first_position >= 0 && first_position + length <= position_table.rows());
  }
  const ProfileScope scope(
      {"embedding_forward", bytes_of(y, tokens) + std::min(bytes_of(token_table), bytes_of(y)) +
                                bytes_of(positions_read(position_table, length))});
  with_float_type(y.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(tokens.size(), kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) {
        const int64_t token = tokens.as<int32_t>()[n];
        CHECK(token >= 0 && token < token_table.rows(), "token {} of a vocabulary of {}", token,
              token_table.rows());
        T* out = y.as<T>() + n * channels;
        const T* row = token_table.as<T>() + token * channels;
        if (position_table.empty()) {
          std::copy_n(row, channels, out);
        } else {
          const int64_t position = first_position + n % length;
          add_rows(out, row, position_table.as<T>() + position * channels, channels);
        }
      }
    });
  });
}

void embedding_backward(const Tensor& dtoken_table, const Tensor& dposition_table, const Tensor& dy,
                        const Tensor& tokens, Stream&) {
  const int64_t length = tokens.cols(), channels = dy.cols();
  CHECK(dy.rows() == tokens.size() && dtoken_table.cols() == channels);
  // Of the tokens' rows at most so much: one that comes again is read and written once.
  const auto row_bytes = static_cast<double>(channels) * sizeof(float);
  const ProfileScope scope(
      {"embedding_backward",
       bytes_of(dy, tokens) +
           2 * row_bytes * static_cast<double>(std::min(tokens.size(), dtoken_table.rows())) +
           (dposition_table.empty() ? 0
                                    : bytes_of(dy) + 2 * row_bytes * static_cast<double>(length))});
  const TokenPlaces places(tokens.as<int32_t>(), tokens.size());
  with_float_type(dy.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(places.distinct(), 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = places.first[begin]; i < places.first[end]; i++) {
        const int64_t token = places.token(i);
        CHECK(token < dtoken_table.rows(), "token {} of a vocabulary of {}", token,
              dtoken_table.rows());
        accumulate_row(dtoken_table.as<float>() + token * channels,
                       dy.as<T>() + places.place(i) * channels, channels);
      }
    });
    if (dposition_table.empty()) return;
    CHECK(dposition_table.cols() == channels && length <= dposition_table.rows());
    parallel_for(length, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < tokens.size(); n += length) {
        for (int64_t t = begin; t < end; t++) {
          accumulate_row(dposition_table.as<float>() + t * channels,
                         dy.as<T>() + (n + t) * channels, channels);
        }
      }
    });
  });
}

}  // namespace lockstep::kernels::cpu
