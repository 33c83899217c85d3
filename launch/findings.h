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

// `workers`: what doctor gathered, an object a worker, by rank.
std::vector<Finding> find_problems(const nlohmann::json& workers);

}  // namespace lockstep::launch
