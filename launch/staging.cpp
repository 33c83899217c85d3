#include "launch/staging.h"

#include <spdlog/spdlog.h>

#include <optional>

#include "comm/agreement.h"
#include "core/text.h"
#include "data/dataset_copy.h"

namespace lockstep::launch {

std::filesystem::path stage(const std::filesystem::path& dataset,
                            const std::filesystem::path& folder, MpiSession& session) {
  Communicator& world = session.world();
  std::optional<DatasetCopy> copy;
  std::filesystem::path path;
  run_together(world, [&] {
    path = DatasetCopy::path_of(dataset, folder);
    if (session.local_rank() == 0) copy.emplace(dataset, folder);
  });
  // All meet after each file, so that nobody waits longer than for one.
  double unfinished = 1;
  while (unfinished > 0) {
    unfinished = 0;
    run_together(world, [&] {
      if (copy && !copy->advance()) unfinished = 1;
    });
    world.all_reduce(&unfinished, 1, ReduceOp::max);
  }
  if (session.rank() == 0) {
    const int64_t bytes = copy->copied_bytes();
    spdlog::info("the dataset {} {}",
                 bytes > 0 ? "was copied to" : "is there already:", path.string());
  }
  return path;
}

}  // namespace lockstep::launch
