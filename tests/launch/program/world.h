#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/launch/program/run.h"

namespace lockstep::black_box {

// A folder of this process, with what a user would have after `prepare` and `train`. Everything in
// it is made once, when it is first asked for; a test works on copies.
class World {
 public:
  static World& get();

  std::filesystem::path path(const std::string& name) const { return folder_ / name; }
  std::filesystem::path write(const std::string& name, const std::string& content) const;
  std::filesystem::path copy(const std::filesystem::path& from, const std::string& name) const;

  std::filesystem::path text();          // 400 lines with something to learn
  std::filesystem::path data();          // of the text, a token a byte
  std::filesystem::path trained_data();  // of the text, with a tokenizer of its own
  std::filesystem::path run();           // trained on data(): checkpoints of steps 20 and 40

 private:
  World();
  ~World();
  std::filesystem::path folder_;
};

// A model and batch that train in a moment, over any of 1, 2, 3 workers; `more` comes after them.
Arguments train_arguments(const std::filesystem::path& data, const std::filesystem::path& run,
                          const Arguments& more = {});

std::string read_text(const std::filesystem::path& path);
std::vector<std::string> lines_of(const std::string& text);
// Inverts the byte at this share of a file.
void flip_a_byte(const std::filesystem::path& path, double share);
// Step folders of a run, ascending.
std::vector<std::string> step_folders(const std::filesystem::path& run);

}  // namespace lockstep::black_box
