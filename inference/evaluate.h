#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "comm/communicator.h"
#include "data/dataset.h"
#include "inference/bootstrap.h"
#include "model/transformer.h"

namespace lockstep {

struct Evaluation {
  double loss = 0;  // nats a token
  double perplexity = 0;
  double bits_per_byte = 0;
  int64_t tokens = 0;  // predicted
  int64_t bytes = 0;   // of text that they encode
  std::optional<ConfidenceInterval> loss_interval;
};

struct EvaluationOptions {
  int64_t max_windows = 0;  // above 0: only the first so many
  int64_t stride = 0;       // from a window to the next; 0: as long as a window
  int64_t resamples = 0;    // of the loss's interval, over windows; 0: none
};

// The loss of every token of a split but the first, each once, in windows of the model's sequence
// length. With a stride windows overlap, and of each but the first only the last `stride` tokens
// count: every one of them is predicted from at least length - stride tokens before it. Collective:
// windows are dealt to the workers, and their sums are added in the order of the windows: the same
// figure for any number of workers. Of a part of the windows bits_per_byte is of their share of the
// bytes. 0 <= stride <= length.
Evaluation evaluate(Transformer& model, const TokenStream& split, Communicator& communicator,
                    const EvaluationOptions& options);
inline Evaluation evaluate(Transformer& model, const TokenStream& split, Communicator& communicator,
                           int64_t max_windows = 0) {
  return evaluate(model, split, communicator, EvaluationOptions{.max_windows = max_windows});
}

nlohmann::json to_json(const Evaluation& evaluation);

}  // namespace lockstep
