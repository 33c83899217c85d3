#include "trainer/trainer_state.h"

#include <nlohmann/json.hpp>

#include "core/check.h"

namespace lockstep {

nlohmann::json to_json(const TrainerState& state) {
  return {{"step", state.step},
          {"updates", state.updates},
          {"tokens", state.tokens},
          {"loss_scale", state.loss_scale},
          {"clean_steps", state.clean_steps},
          {"skipped_steps", state.skipped_steps},
          {"lost_steps", state.lost_steps}};
}

TrainerState trainer_state_from_json(const nlohmann::json& json) {
  TrainerState state;
  const auto get = [&json](const char* name, auto& value) {
    try {
      json.at(name).get_to(value);
    } catch (const nlohmann::json::exception&) {
      throw DataError("the checkpoint's training state has no usable '{}'", name);
    }
  };
  get("step", state.step);
  get("updates", state.updates);
  get("tokens", state.tokens);
  get("loss_scale", state.loss_scale);
  get("clean_steps", state.clean_steps);
  get("skipped_steps", state.skipped_steps);
  get("lost_steps", state.lost_steps);
  return state;
}

}  // namespace lockstep
