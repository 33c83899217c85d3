#include "trainer/replay.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "comm/agreement.h"
#include "trainer/metrics.h"
#include "trainer/product_record.h"
#include "trainer/training.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr std::array kKinds{FlatKind::weights, FlatKind::exp_avg, FlatKind::exp_avg_sq};
constexpr std::array kGroups{"/model", "/optimizer/exp_avg", "/optimizer/exp_avg_sq"};

// RUN/metrics.jsonl by step.
std::map<int64_t, json> noted_steps(const std::filesystem::path& run) {
  std::map<int64_t, json> steps;
  for_each_step(run / "metrics.jsonl", [&](int64_t step, const json& object, const std::string&) {
    steps[step] = object;
  });
  return steps;
}

// What the step's line says otherwise; empty: nothing. Numbers are written so that they read back
// as they were.
std::string difference(const StepResult& result, const json& noted) {
  const std::array<std::pair<const char*, double>, 3> values{
      {{"loss", result.loss}, {"grad_norm", result.grad_norm}, {"loss_scale", result.loss_scale}}};
  for (const auto& [name, value] : values) {
    const json then = noted.value(name, json()), now = json::parse(json(value).dump());
    if (now != then) return fmt::format("{} {}, noted was {}", name, now.dump(), then.dump());
  }
  return "";
}

// The first element of `tensor` that has other bits in the checkpoint, from `begin` of a flat
// buffer on; -1: none.
int64_t first_difference(const Checkpoint& checkpoint, FlatKind kind, int64_t begin,
                         const Tensor& tensor) {
  constexpr int64_t kPiece = int64_t{1} << 22;  // elements
  const Shape piece{std::min(kPiece, tensor.size())};
  const Buffer own(DType::fp32, piece), other(DType::fp32, piece);
  Stream stream(tensor.device());
  for (int64_t at = 0; at < tensor.size(); at += kPiece) {
    const int64_t count = std::min(kPiece, tensor.size() - at);
    const Tensor read = other.tensor().slice(0, count);
    checkpoint.read(kind, begin + at, read);
    copy(own.tensor().slice(0, count), tensor.slice(at, at + count), stream);
    stream.synchronize();
    const float* ours = own.tensor().as<float>();
    const float* theirs = read.as<float>();
    if (std::memcmp(ours, theirs, static_cast<size_t>(read.size_bytes())) == 0) continue;
    for (int64_t i = 0; i < count; i++) {
      if (std::memcmp(ours + i, theirs + i, sizeof(float)) != 0) return begin + at + i;
    }
  }
  return -1;
}

std::string difference(Training& training, const Checkpoint& checkpoint,
                       Communicator& communicator) {
  const int64_t size = checkpoint.table().size();
  const int64_t none = size * static_cast<int64_t>(kKinds.size());
  if (json state = to_json(training.state()); state != checkpoint.info().trainer_state) {
    return fmt::format("the trainer's state in {}: {}, not {}", checkpoint.path().string(),
                       state.dump(), checkpoint.info().trainer_state.dump());
  }
  int64_t found = none;  // the first place over all three buffers
  run_together(communicator, [&] {
    for (const CheckpointSlice& slice : training.shard()) {
      const std::array tensors{slice.weights, slice.exp_avg, slice.exp_avg_sq};
      for (size_t kind = 0; kind < kKinds.size(); kind++) {
        const int64_t at =
            first_difference(checkpoint, kKinds[kind], slice.range.begin, tensors[kind]);
        if (at >= 0) found = std::min(found, static_cast<int64_t>(kind) * size + at);
      }
    }
  });
  auto first = static_cast<double>(found);  // exact below 2^53
  communicator.set_purpose("of what differs");
  communicator.all_reduce(&first, 1, ReduceOp::min);
  found = static_cast<int64_t>(first);
  if (found == none) return "";
  for (const Parameter& parameter : checkpoint.table().parameters()) {
    const int64_t at = found % size;
    if (at >= parameter.offset && at < parameter.end()) {
      return fmt::format("{}/{} in {}, first at element {}",
                         kGroups[static_cast<size_t>(found / size)], parameter.name,
                         checkpoint.path().string(), at - parameter.offset);
    }
  }
  CHECK(false, "element {} belongs to no parameter", found);
  return "";
}

void check_ends(const Checkpoint& from, const Checkpoint& to) {
  for (const Checkpoint* end : {&from, &to}) {
    if (end->has_optimizer_state()) continue;
    throw UsageError("{} holds weights only; a replay needs two step folders of a run",
                     end->path().string());
  }
  if (from.info().step >= to.info().step) {
    throw UsageError("{} is of step {} and {} of step {}: name the earlier one first",
                     from.path().string(), from.info().step, to.path().string(), to.info().step);
  }
  if (from.info().model != to.info().model || from.info().run_config != to.info().run_config) {
    const auto changes = differences(from.info().run_config, to.info().run_config, {});
    throw UsageError(
        "between {} and {} the run was given other options ({}): replay the part before or after "
        "that",
        from.path().string(), to.path().string(),
        changes.empty() ? "another model" : fmt::format("{}", fmt::join(changes, ", ")));
  }
}

}  // namespace

Replay replay(TrainConfig config, Checkpoint from, const Checkpoint& to, const Dataset& dataset,
              Communicator& communicator, const std::function<void(int64_t)>& progress) {
  run_together(communicator, [&] {
    check_ends(from, to);
    const json& recorded = to.info().run_config;
    config.steps = recorded.value("steps", config.steps);
    config.micro_batch_size = recorded.value("micro_batch_size", config.micro_batch_size);
    check_resume(config, dataset, from);
    const int workers = recorded.value("virtual_workers", 1);
    if (config.reduce == Reduce::all_reduce && workers != communicator.size()) {
      throw UsageError(
          "with --reduce all-reduce the bits depend on the number of workers: replay it with {}, "
          "as "
          "it was trained",
          workers);
    }
  });
  const std::map<int64_t, json> noted = noted_steps(config.run);
  const std::vector<int64_t> saved = list_checkpoints(config.run);
  const int64_t last = to.info().step;
  const std::atomic<bool> never{false};
  Start start;
  start.checkpoint.emplace(std::move(from));
  start.resumes = true;
  Training training(config, communicator, dataset, start, never);

  Replay result;
  if (config.device == Device::cuda) result.notes = ProductRecord(config.run).reuse(communicator);
  while (training.state().step < last) {
    const StepResult step = training.step();
    progress(step.step);
    const auto line = noted.find(step.step);
    const std::string said = line == noted.end() ? "" : difference(step, line->second);
    const auto differs = [&](const std::string& what) {
      if (result.same) result.step = step.step;
      result.what += (result.same ? "" : "; ") + what;
      result.same = false;
    };
    if (!said.empty() && result.same) differs(said);

    std::optional<Checkpoint> there;
    if (step.step != last && std::binary_search(saved.begin(), saved.end(), step.step)) {
      run_together(communicator, [&] {
        there.emplace(Checkpoint::open(checkpoint_folder(config.run, step.step)));
      });
    }
    if (!there && step.step != last) continue;
    const std::string held = difference(training, there ? *there : to, communicator);
    if (held.empty()) continue;
    differs(held);
    return result;
  }
  return result;
}

}  // namespace lockstep
