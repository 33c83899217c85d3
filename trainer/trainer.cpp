#include "trainer/trainer.h"

#include <atomic>

#include "comm/agreement.h"
#include "trainer/resume.h"
#include "trainer/run.h"

namespace lockstep {
namespace {

std::atomic<bool> stop_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set by signal handlers");

}  // namespace

ExitCode train(const TrainConfig& config, Communicator& communicator,
               const std::function<void()>& accepted, StatusFile* status) {
  validate(config.model);
  validate(batch_plan(config, communicator));
  const Dataset dataset = Dataset::open(config.data);
  if (dataset.tokenizer().vocab_size() > config.model.vocab_size) {
    throw DataError("the dataset {} has token ids up to {}, but the model's vocabulary has {}",
                    config.data.string(), dataset.tokenizer().vocab_size() - 1,
                    config.model.vocab_size);
  }
  Run run(config, communicator, dataset, find_start(config, dataset, communicator), stop_requested,
          status);
  if (accepted) run_together(communicator, accepted);
  const ExitCode code = run.train();
  stop_requested = false;
  return code;
}

void request_stop() noexcept { stop_requested = true; }

}  // namespace lockstep
