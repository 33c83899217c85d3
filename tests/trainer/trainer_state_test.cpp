#include "trainer/trainer_state.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/check.h"

namespace lockstep {
namespace {

TEST(TrainerState, ComesBackFromItsJson) {
  const TrainerState state{.step = 1,
                           .updates = 2,
                           .tokens = int64_t{1} << 40,
                           .loss_scale = 4096,
                           .clean_steps = 5,
                           .skipped_steps = 6,
                           .lost_steps = 7};
  EXPECT_EQ(trainer_state_from_json(to_json(state)), state);
}

TEST(TrainerState, AMissingOrIllTypedFieldIsNamed) {
  const auto whole = to_json(TrainerState{});
  for (const auto& [field, value] : whole.items()) {
    auto json = whole;
    json.erase(field);
    EXPECT_THROW(trainer_state_from_json(json), DataError) << field;
    json[field] = "text";
    EXPECT_THROW(trainer_state_from_json(json), DataError) << field;
  }
}

}  // namespace
}  // namespace lockstep
