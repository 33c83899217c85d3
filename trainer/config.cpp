#include "trainer/config.h"

#include <array>

namespace lockstep {

std::string_view name(Schedule schedule) {
  constexpr std::array kNames{"cosine", "linear", "constant", "inverse-sqrt", "wsd"};
  return kNames.at(static_cast<size_t>(schedule));
}

std::string_view name(OptimizerKind kind) {
  return kind == OptimizerKind::adamw ? "adamw" : "adam";
}

std::string_view name(Reduce reduce) {
  return reduce == Reduce::ordered ? "ordered" : "all-reduce";
}

}  // namespace lockstep
