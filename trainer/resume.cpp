#include "trainer/resume.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>

#include "comm/agreement.h"

namespace lockstep {
namespace {

using nlohmann::json;

// As an option of the command line where it is one: "num_layers" -> "--layers".
std::string option_name(const std::string& field) {
  static const std::map<std::string, std::string> shorter{{"num_layers", "--layers"},
                                                          {"num_heads", "--heads"},
                                                          {"num_kv_heads", "--kv-heads"},
                                                          {"vocab_size", "vocabulary"},
                                                          {"head_dim", "head size"},
                                                          {"norm_epsilon", "epsilon of norms"},
                                                          {"tied_embeddings", "tied embeddings"},
                                                          {"rope_theta", "base of RoPE"},
                                                          {"rope_scaling", "scaling of RoPE"}};
  if (const auto it = shorter.find(field); it != shorter.end()) return it->second;
  std::string name = "--" + field;
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

std::string value_text(const json& value) {
  if (value.is_number_float()) return fmt::format("{}", value.get<double>());
  return value.is_string() ? value.get<std::string>() : value.dump();
}

void check_tokenizer(const Dataset& dataset, const Checkpoint& checkpoint) {
  const Tokenizer tokenizer = Tokenizer::from_json(checkpoint.info().tokenizer_json);
  if (dataset.tokenizer().fingerprint() == tokenizer.fingerprint()) return;
  throw DataError(
      "the dataset {} was prepared with another tokenizer than that of the checkpoint {}: prepare "
      "the text with the checkpoint's own, or choose the dataset that belongs to it",
      dataset.folder().string(), checkpoint.path().string());
}

}  // namespace

std::vector<std::string> differences(const json& now, const json& then,
                                     const std::vector<std::string>& free) {
  std::vector<std::string> texts;
  for (const auto& [field, value] : now.items()) {
    if (std::find(free.begin(), free.end(), field) != free.end()) continue;
    const json before = then.value(field, json("nothing"));
    if (value != before) {
      texts.push_back(fmt::format("{} {} against {}", option_name(field), value_text(value),
                                  value_text(before)));
    }
  }
  return texts;
}

std::string fingerprint(const TokenStream& stream) {
  constexpr int64_t kPlaces = 64, kTokens = 64;
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  std::array<int32_t, kTokens> tokens;
  const int64_t count = std::min(stream.size(), kTokens);
  for (int64_t place = 0; place < kPlaces; place++) {
    stream.copy((stream.size() - count) * place / (kPlaces - 1), count, tokens.data());
    for (int64_t i = 0; i < count; i++) {
      hash = (hash ^ static_cast<uint32_t>(tokens[static_cast<size_t>(i)])) * 1099511628211u;
    }
  }
  return fmt::format("{} tokens, {} bytes, {:016x}", stream.size(), stream.bytes(), hash);
}

json run_options(const TrainConfig& config, const Dataset& dataset) {
  const OptimizerConfig& o = config.optimizer;
  const ScheduleConfig& s = config.schedule;
  return {{"steps", config.steps},
          {"seed", config.seed},
          {"batch_size", config.batch_size},
          {"optimizer", name(o.kind)},
          {"beta1", o.beta1},
          {"beta2", o.beta2},
          {"epsilon", o.epsilon},
          {"weight_decay", o.weight_decay},
          {"clip_norm", o.clip_norm},
          {"clip_value", o.clip_value},
          {"schedule", name(s.schedule)},
          {"learning_rate", s.learning_rate},
          {"warmup_steps", s.warmup_steps},
          {"min_lr_ratio", s.min_lr_ratio},
          {"precision", name(config.precision)},
          {"reduce", name(config.reduce)},
          {"virtual_workers", config.virtual_workers},
          {"micro_batch_size", config.micro_batch_size},
          {"gradient_dtype", name(config.gradient_dtype)},
          {"loss_scale", config.loss_scale ? fmt::format("{}", *config.loss_scale) : "dynamic"},
          {"data", fingerprint(dataset.split("train"))}};
}

std::vector<std::string> check_resume(const TrainConfig& config, const Dataset& dataset,
                                      const Checkpoint& checkpoint) {
  check_tokenizer(dataset, checkpoint);
  const CheckpointInfo& info = checkpoint.info();
  const json now = run_options(config, dataset);
  if (const json data = info.run_config.value("data", json("nothing")); now["data"] != data) {
    throw DataError("--data {} ({}) is not what the checkpoint {} was trained on ({})",
                    dataset.folder().string(), value_text(now["data"]), checkpoint.path().string(),
                    value_text(data));
  }
  std::vector<std::string> wrong = differences(to_json(config.model), to_json(info.model), {});
  // Where the library sums, in its own order, all workers are virtual workers.
  std::vector<std::string> free{"steps", "data", "micro_batch_size"};
  if (config.reduce == Reduce::all_reduce) free.push_back("virtual_workers");
  for (std::string& text : differences(now, info.run_config, free)) {
    wrong.push_back(std::move(text));
  }
  if (!wrong.empty()) {
    throw UsageError(
        "these options contradict the run in {} (step {}): {}\n"
        "give what it was started with, or another --run",
        config.run.string(), info.step, fmt::join(wrong, ", "));
  }
  if (config.steps < info.step) {
    throw UsageError("--steps {} is less than the {} steps that the run in {} has already",
                     config.steps, info.step, config.run.string());
  }
  std::vector<std::string> notes;
  const json micro = info.run_config.value("micro_batch_size", json(config.micro_batch_size));
  if (micro != now["micro_batch_size"]) {
    notes.push_back(fmt::format(
        "--micro-batch-size {} was {} before: sums over a batch are made in other pieces from here "
        "on, and round differently",
        config.micro_batch_size, value_text(micro)));
  }
  const json workers = info.run_config.value("virtual_workers", json(config.virtual_workers));
  if (workers != now["virtual_workers"]) {
    notes.push_back(
        fmt::format("{} workers, {} before: --reduce all-reduce sums in another order from here on",
                    config.virtual_workers, value_text(workers)));
  }
  const json steps = info.run_config.value("steps", json(config.steps));
  const bool depends_on_steps = config.schedule.schedule != Schedule::constant &&
                                config.schedule.schedule != Schedule::inverse_sqrt;
  if (steps != now["steps"] && depends_on_steps) {
    notes.push_back(fmt::format(
        "--steps {} was {} before: the learning rate follows the {} schedule of {} steps from here "
        "on",
        config.steps, value_text(steps), name(config.schedule.schedule), config.steps));
  }
  return notes;
}

void check_initial_weights(const TrainConfig& config, const Dataset& dataset,
                           const Checkpoint& checkpoint) {
  check_tokenizer(dataset, checkpoint);
  checkpoint.require_whole_weights("training");
  // Neither changes a parameter: how much is dropped, and, with rotary positions, how far they go.
  std::vector<std::string> free{"dropout"};
  if (config.model.family == Family::llama) free.push_back("context_length");
  const auto wrong = differences(to_json(config.model), to_json(checkpoint.info().model), free);
  if (wrong.empty()) return;
  throw UsageError("the model does not fit the weights of --initialize-from {}: {}",
                   config.initialize_from.string(), fmt::join(wrong, ", "));
}

Start find_start(const TrainConfig& config, const Dataset& dataset, Communicator& communicator) {
  std::string newest;
  run_together(communicator, [&] {
    if (communicator.rank() != 0) return;
    if (config.fresh && !list_checkpoints(config.run).empty()) {
      throw UsageError(
          "--fresh: {} holds checkpoints already; choose another --run, or leave --fresh out to go "
          "on with it",
          config.run.string());
    }
    if (const auto path = newest_good_checkpoint(config.run)) newest = path->string();
  });
  communicator.set_purpose("of the newest checkpoint's name");
  communicator.broadcast(newest, 0);

  Start start;
  run_together(communicator, [&] {
    start.resumes = !newest.empty();
    if (start.resumes) {
      start.checkpoint.emplace(Checkpoint::open(newest));
      start.notes = check_resume(config, dataset, *start.checkpoint);
    } else if (!config.initialize_from.empty()) {
      start.checkpoint.emplace(Checkpoint::open(config.initialize_from));
      check_initial_weights(config, dataset, *start.checkpoint);
    }
  });
  return start;
}

}  // namespace lockstep
