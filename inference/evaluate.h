#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "comm/communicator.h"
#include "data/dataset.h"
#include "model/transformer.h"

namespace lockstep {

struct Evaluation {
  double loss = 0;  // nats a token
  double perplexity = 0;
  double bits_per_byte = 0;
  int64_t tokens = 0;  // predicted
  int64_t bytes = 0;   // of text that they encode
};

// The loss of every token of a split but the first, each once, in windows of the model's sequence
// length that do not overlap. Collective: windows are dealt to the workers, and their sums are
// added in the order of the windows: the same figure for any number of workers. max_windows > 0
// takes only the first so many (bits_per_byte is then of their share of the bytes).
Evaluation evaluate(Transformer& model, const TokenStream& split, Communicator& communicator,
                    int64_t max_windows = 0);

nlohmann::json to_json(const Evaluation& evaluation);

}  // namespace lockstep
