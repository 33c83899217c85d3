#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace lockstep::launch {

// Something that is wrong with a machine, and the command that mends it.
struct Finding {
  bool fatal;  // training will not work; otherwise slower, or with less
  std::string what, mend;
};

// Bytes a second, below which a network is too slow to train over; Ethernet of 1 Gbit/s gives
// 117e6.
inline constexpr double kSlowNetwork = 100e6;

// `workers`: what doctor gathered, an object a worker, by rank.
std::vector<Finding> find_problems(const nlohmann::json& workers);

}  // namespace lockstep::launch
