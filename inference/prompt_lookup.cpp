#include "inference/prompt_lookup.h"

#include <algorithm>

namespace lockstep {
namespace {

// One token alone says little of the next.
constexpr size_t kFewest = 2, kMost = 4;

// How many of the tokens before `end` equal the last ones, up to kMost.
size_t common(std::span<const int32_t> tokens, size_t end) {
  size_t n = 0;
  while (n < std::min(end, kMost) && tokens[end - 1 - n] == tokens[tokens.size() - 1 - n]) n++;
  return n;
}

}  // namespace

std::vector<int32_t> prompt_lookup(std::span<const int32_t> tokens, int64_t count) {
  size_t best = kFewest - 1, found = 0;
  for (size_t end = tokens.size(); end-- > kFewest && best < kMost;) {
    const size_t n = common(tokens, end);
    if (n > best) best = n, found = end;
  }
  std::vector<int32_t> next;
  if (found == 0) return next;
  for (size_t at = found; next.size() < static_cast<size_t>(count); at++) {
    next.push_back(at < tokens.size() ? tokens[at] : next[at - tokens.size()]);
  }
  return next;
}

}  // namespace lockstep
