#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "comm/communicator.h"
#include "data/dataset.h"
#include "trainer/config.h"

namespace lockstep {

struct Replay {
  bool same = true;
  // Where not: the first step that differs from what the run noted in its metrics, or whose
  // checkpoint differs, and what differs there ("loss", "/model/..." with the element).
  int64_t step = 0;
  std::string what;
  std::vector<std::string> notes;  // why it may differ (trainer/product_record.h)
};

// Trains again from checkpoint `from` to the step of `to`, two of one run that `config` describes,
// and compares with what the run left in config.run: loss and gradient norm of each step, and all
// weights, moments and state where there is a checkpoint. Steps and micro-batches are those of
// `to`, whatever the run was later continued with. Writes nothing. Throws UsageError or DataError
// when the two or the configuration do not belong together. `progress` is called after each step.
// Collective.
Replay replay(TrainConfig config, Checkpoint from, const Checkpoint& to, const Dataset& dataset,
              Communicator& communicator, const std::function<void(int64_t step)>& progress);

}  // namespace lockstep
