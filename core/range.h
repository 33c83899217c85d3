#pragma once
#include <cstdint>

namespace lockstep {

// Elements [begin, end) of a flat buffer.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// How many pieces of `each` elements cover n of them, and the least multiple that is not below n.
constexpr int64_t pieces(int64_t n, int64_t each) { return (n + each - 1) / each; }
constexpr int64_t round_up(int64_t n, int64_t multiple) { return pieces(n, multiple) * multiple; }

}  // namespace lockstep
