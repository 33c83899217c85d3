#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <random>

#include "tests/checkpoints/support.h"

// A process that saves all the time is killed at a random moment, again and again. Whatever it was
// doing, every checkpoint that has its name is whole, and none that was there is lost.
namespace lockstep {
namespace {

constexpr int kKills = 50;
constexpr int kKeep = 2;

ModelConfig model() {
  ModelConfig config = tiny_gpt2();
  config.vocab_size = 20000;  // large enough that the kill meets all stages of a save
  return config;
}

// Goes on from the newest checkpoint and saves each step, as two workers, until it is killed.
[[noreturn]] void save_for_ever(const fs::path& run) {
  const int64_t size = ParameterTable(model()).size();
  const std::optional<fs::path> newest = newest_good_checkpoint(run);
  int64_t step = newest ? Checkpoint::open(*newest).info().step : 0;
  CheckpointWriter first(run, 0, 2, kKeep), second(run, 1, 2, kKeep);
  while (true) {
    step++;
    first.prepare(step);
    first.save(info_of(model(), step), {slice_of(0, size / 2, step).view});
    second.save(info_of(model(), step), {slice_of(size / 2, size, step).view});
    second.wait();
    first.wait();
  }
}

// Starts such a process and kills it after a time in which it saves a few times.
void run_until_killed(const fs::path& run, std::chrono::microseconds time) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    try {
      save_for_ever(run);
    } catch (...) {
      _exit(1);
    }
  }
  std::this_thread::sleep_for(time);
  kill(child, SIGKILL);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "it ended by itself";
}

TEST(Crash, EveryNamedCheckpointIsWholeWheneverTheProcessDies) {
  const TemporaryFolder run;
  std::mt19937 random(1);
  // The first life has time for one checkpoint at least; then the length of a life is drawn around
  // that of a save, whatever the machine.
  const auto start = std::chrono::steady_clock::now();
  save_as_workers(run.path(), info_of(model(), 1), {0, ParameterTable(model()).size()});
  const auto one_save = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - start);
  std::uniform_int_distribution<int64_t> lifetime(0, 4 * one_save.count());
  int64_t newest = 1;
  int partial_seen = 0;
  for (int i = 0; i < kKills; i++) {
    ASSERT_NO_FATAL_FAILURE(
        run_until_killed(run.path(), std::chrono::microseconds(lifetime(random))));
    for (const auto& entry : fs::directory_iterator(run / "checkpoints")) {
      partial_seen += entry.path().filename().string().starts_with('.');
    }
    const std::vector<int64_t> steps = list_checkpoints(run.path());
    ASSERT_FALSE(steps.empty());
    ASSERT_GE(steps.back(), newest);
    newest = steps.back();
    ASSERT_THAT(verify_checkpoint(run.path()), testing::IsEmpty());
    const Checkpoint checkpoint = Checkpoint::open(run.path());
    ASSERT_EQ(checkpoint.info().step, newest);
    const int64_t size = checkpoint.table().size();
    const std::vector<float> values = read_floats(checkpoint, FlatKind::exp_avg_sq, 0, size);
    for (int64_t k = 0; k < size; k += 997) {
      ASSERT_EQ(values[k], value_at(FlatKind::exp_avg_sq, k, newest));
    }
  }
  // Or the kills never met a save, and nothing was tested.
  EXPECT_GT(partial_seen, kKills / 10);
  EXPECT_GT(newest, kKills / 10);
}

}  // namespace
}  // namespace lockstep
