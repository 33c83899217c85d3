#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>

namespace lockstep {

// All that a resumed run needs beside tensors and options. The sampler and dropout have no state:
// they are functions of the seed and the step.
struct TrainerState {
  int64_t step = 0;           // done, skipped ones included
  int64_t updates = 0;        // of the weights: what schedule and bias correction count
  int64_t tokens = 0;         // trained on
  double loss_scale = 1;      // for the next step
  int64_t clean_steps = 0;    // since the loss scale last changed
  int64_t skipped_steps = 0;  // in all
  int64_t lost_steps = 0;     // skipped in a row with no lower loss scale to try
  friend bool operator==(const TrainerState&, const TrainerState&) = default;
};

// Every field by its name. from_json throws DataError on a missing or ill-typed field.
nlohmann::json to_json(const TrainerState& state);
TrainerState trainer_state_from_json(const nlohmann::json& json);

}  // namespace lockstep
