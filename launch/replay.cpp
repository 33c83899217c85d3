#include "trainer/replay.h"

#include <spdlog/spdlog.h>

#include "comm/agreement.h"
#include "launch/command.h"
#include "launch/train_options.h"

namespace lockstep::launch {
namespace {

struct ReplayOptions {
  bool replay = false;
  std::filesystem::path from, to, data;
  MachineOptions machine;
};

OptionTable options(ReplayOptions& o) {
  OptionTable table("lockstep checkpoint verify", "--replay A B [--data DATASET] [--threads N]",
                    "Trains again from checkpoint A to the step of B and compares every bit.");
  table.positional("A", o.from);
  table.positional("B", o.to);
  table.group("Replay");
  table.add("replay", flag(o.replay), "train again from A to B");
  table.add("data", path(o.data, "DATASET"),
            "the dataset that the run was trained on (default: where run.cfg says)");
  table.group("Machine");
  add_machine_options(table, o.machine);
  return table;
}

// What the run of checkpoint `to` was started with, as its run.cfg says.
TrainConfig recorded(const ReplayOptions& o, const Checkpoint& to, const MpiSession& session) {
  if (!to.has_optimizer_state()) {
    throw UsageError("{} holds weights only; a replay needs two step folders of a run",
                     to.path().string());
  }
  const auto run = std::filesystem::canonical(to.path()).parent_path().parent_path();
  TrainOptions recorded;
  OptionTable table = train_table(recorded);
  if (!std::filesystem::exists(run / "run.cfg")) {
    throw DataError("{} is missing: it says what the run was started with",
                    (run / "run.cfg").string());
  }
  table.read_file(run / "run.cfg");
  recorded.run = run;
  if (!o.data.empty()) recorded.data = o.data;
  Surroundings surroundings;
  surroundings.workers = session.size();
  surroundings.weights = to.info().model;
  recorded.context_length = to.info().model.context_length;
  return resolve_train(recorded, table, surroundings);
}

}  // namespace

ExitCode run_replay(const Arguments& arguments, MpiSession& session) {
  Communicator& world = session.world();
  ReplayOptions o;
  std::optional<Checkpoint> from, to;
  std::optional<Dataset> dataset;
  TrainConfig config;
  run_together(world, [&] {
    options(o).parse(arguments);
    check_device(o.machine);
    from.emplace(Checkpoint::open(o.from));
    to.emplace(Checkpoint::open(o.to));
    config = recorded(o, *to, session);
    dataset.emplace(Dataset::open(config.data));
  });
  start_threads(o.machine.threads, &session);
  config.device = start_device(o.machine, &session);
  const auto nccl = device_communicator(config.device, world);
  const int64_t first = from->info().step, last = to->info().step;
  const Replay result =
      replay(config, std::move(*from), *to, *dataset, nccl ? *nccl : world, [&](int64_t step) {
        if (session.rank() == 0 && (step - first) % 10 == 0) {
          spdlog::info("step {}, up to {}", step, last);
        }
      });
  if (session.rank() != 0) return result.same ? ExitCode::done : ExitCode::difference;
  for (const std::string& note : result.notes) spdlog::warn("{}", note);
  if (result.same) {
    fmt::print("steps {} to {} trained again: every bit of {} agrees\n", first + 1, last,
               to->path().string());
    return ExitCode::done;
  }
  fmt::print("step {} is the first that differs: {}\n", result.step, result.what);
  return ExitCode::difference;
}

}  // namespace lockstep::launch
