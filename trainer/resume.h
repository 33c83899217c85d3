#pragma once
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "comm/communicator.h"
#include "data/dataset.h"
#include "trainer/config.h"

// What a checkpoint says of its run, and whether another start may go on with it.
namespace lockstep {

// The options that shaped a run, by the names of the command line with '_' for '-', and a
// fingerprint of its training data. Scalars only.
nlohmann::json run_options(const TrainConfig& config, const Dataset& dataset);

// "--layers 4 against 6" for each field in which the two differ, fields in `free` aside.
std::vector<std::string> differences(const nlohmann::json& now, const nlohmann::json& then,
                                     const std::vector<std::string>& free);

// Length, bytes and a hash of tokens sampled from all over the split.
std::string fingerprint(const TokenStream& stream);

// Throws UsageError, naming each option with both values, when `config` contradicts the run that
// the checkpoint belongs to, and DataError when the dataset is another one. Steps, micro-batches,
// the number of workers and what only concerns output may change; returns notes on those that
// change the result.
std::vector<std::string> check_resume(const TrainConfig& config, const Dataset& dataset,
                                      const Checkpoint& checkpoint);

// The same for --initialize-from: weights of the same architecture, for the same tokenizer.
void check_initial_weights(const TrainConfig& config, const Dataset& dataset,
                           const Checkpoint& checkpoint);

// Where a run's weights come from.
struct Start {
  std::optional<Checkpoint> checkpoint;  // none: random weights
  bool resumes = false;                  // false with a checkpoint: only the weights are taken
  std::vector<std::string> notes;        // for the user
};

// The run's newest good checkpoint, or that of --initialize-from, checked against the options.
// Refuses --fresh on a run that has a checkpoint. Collective: the first worker chooses.
Start find_start(const TrainConfig& config, const Dataset& dataset, Communicator& communicator);

}  // namespace lockstep
