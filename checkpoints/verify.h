#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace lockstep {

// What is wrong with a step folder, a line a fault, by sizes and seals alone: reads all but the
// tensors.
std::vector<std::string> faults_of_headers(const std::filesystem::path& step_folder);

// The same, every byte read.
std::vector<std::string> faults_of_step(const std::filesystem::path& step_folder);

}  // namespace lockstep
