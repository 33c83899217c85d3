#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "launch/command.h"
#include "launch/signals.h"

namespace lockstep::launch {
namespace {

namespace fs = std::filesystem;

class PrepareCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("lockstep-prepare-{}", getpid());
    fs::create_directory(folder_);
    std::ofstream(folder_ / "text.txt") << "Some text, of which a dataset could be made.\n";
  }
  void TearDown() override { fs::remove_all(folder_); }

  Arguments arguments() const {
    return {"--input",           folder_ / "text.txt", "--output",
            folder_ / "dataset", "--tokenizer",        "bytes"};
  }

  fs::path folder_;
};

TEST_F(PrepareCommand, RemovesTheUnfinishedDatasetBeforeASignalEndsIt) {
  for (const int number : {SIGINT, SIGTERM}) {
    EXPECT_EXIT(
        {
          stop_on_signals();
          kill(getpid(), number);
          while (stop_signal() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          run_prepare(arguments(), nullptr);
        },
        ::testing::KilledBySignal(number), "stopped; nothing is left of .*dataset");
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
  }
}

TEST_F(PrepareCommand, MakesTheDatasetWhenNoSignalComes) {
  EXPECT_EQ(run_prepare(arguments(), nullptr), ExitCode::done);
  EXPECT_TRUE(fs::exists(folder_ / "dataset" / "dataset.json"));
  EXPECT_THROW(run_prepare(arguments(), nullptr), UsageError);  // it is there already
}

}  // namespace
}  // namespace lockstep::launch
