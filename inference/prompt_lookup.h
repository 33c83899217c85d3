#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace lockstep {

// What may follow `tokens`, if they repeat themselves: their last 4 tokens (else 3, else 2) are
// looked for among those before, and up to `count` tokens that followed where they stood last are
// proposed (Saxena, "Prompt lookup decoding", 2023). Where that reaches the end of `tokens`, they
// have a period, which goes on. Empty when there is no such place. Time: one look at each token.
std::vector<int32_t> prompt_lookup(std::span<const int32_t> tokens, int64_t count);

}  // namespace lockstep
