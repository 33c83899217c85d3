#include "data/prepare.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "core/check.h"
#include "core/file.h"
#include "data/bpe_trainer.h"
#include "data/ordered_pipeline.h"
#include "data/prepare_output.h"
#include "data/prepare_scan.h"
#include "data/shard.h"
#include "data/text_source.h"
#include "data/tokenizer.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::array kSplitNames{"train", "validation"};

void validate(const PrepareConfig& config) {
  if (config.inputs.empty()) throw UsageError("no input: name files or folders with --input");
  if (config.output.empty()) throw UsageError("no output: name the dataset folder with --output");
  if (!(config.validation_fraction >= 0 && config.validation_fraction < 1)) {
    throw UsageError("--validation-fraction is {}; it must be at least 0 and less than 1",
                     config.validation_fraction);
  }
  CHECK(config.max_shard_tokens >= 1 && config.max_shard_tokens <= INT32_MAX);
}

// What a document contributes to each split: all of it to one, or a part to each at the cut.
struct DocumentParts {
  std::string_view train, validation;
  bool in_train, in_validation;
};

DocumentParts parts(std::string_view text, size_t document, const InputPlan& plan) {
  if (plan.cut && plan.cut->document == static_cast<int64_t>(document)) {
    const size_t cut = validation_cut(text, static_cast<size_t>(plan.cut->offset));
    return {text.substr(0, cut), text.substr(cut), cut > 0, cut < text.size()};
  }
  return plan.validation[document] ? DocumentParts{{}, text, false, true}
                                   : DocumentParts{text, {}, true, false};
}

// Calls use(text, is_validation, document_ends) for every kept text of a block, in order.
template <class Use>
void for_each_text(const TextBlock& block, const InputPlan& plan, const std::string& field,
                   const Use& use) {
  if (block.first_document + block.documents > plan.documents) {
    throw DataError("{} changed while it was read", block.file->path.string());
  }
  auto document = static_cast<size_t>(block.first_document);
  if (!block.file->json_lines) {
    const bool validation = block.after_cut || plan.validation[document];
    if (!plan.dropped[document]) use(block.text, validation, block.document_ends);
    return;
  }
  for (const std::string& text : json_documents(block, field)) {
    if (!plan.dropped[document]) {
      const DocumentParts part = parts(text, document, plan);
      if (part.in_train) use(part.train, false, true);
      if (part.in_validation) use(part.validation, true, true);
    }
    document++;
  }
}

struct Encoded {
  struct Part {
    std::vector<int32_t> ids;
    int64_t bytes = 0, documents = 0;
  };
  std::array<Part, 2> parts;  // train, validation
  int64_t consumed_bytes = 0;
};

// One pass over the input.
class Preparation {
 public:
  Preparation(const PrepareConfig& config, const PrepareProgress& progress)
      : config_(config),
        progress_(progress),
        threads_(config.threads > 0 ? config.threads
                                    : std::max(1, int(std::thread::hardware_concurrency()))),
        files_(find_inputs(config.inputs)) {
    for (const InputFile& file : files_) total_bytes_ += file.size_bytes;
  }

  PrepareReport run() {
    PartialFolder folder(config_.output);
    std::optional<Tokenizer> loaded;
    if (config_.tokenizer != "train") loaded = load_tokenizer();
    plan_ = scan_input(files_, config_, threads_, progress_);
    const Tokenizer tokenizer = loaded ? std::move(*loaded) : train_tokenizer();
    encode(tokenizer, folder.path());
    check_and_complete_report(tokenizer);
    write_description(tokenizer, folder.path());
    folder.commit();
    return report_;
  }

 private:
  Tokenizer load_tokenizer() const;
  Tokenizer train_tokenizer() const;
  void encode(const Tokenizer& tokenizer, const fs::path& folder);
  void check_and_complete_report(const Tokenizer& tokenizer);
  void write_description(const Tokenizer& tokenizer, const fs::path& folder) const;

  const PrepareConfig& config_;
  const PrepareProgress& progress_;
  const int threads_;
  const std::vector<InputFile> files_;
  int64_t total_bytes_ = 0;
  InputPlan plan_;
  PrepareReport report_;
  std::array<std::vector<ShardInfo>, 2> shards_;
};

Tokenizer Preparation::load_tokenizer() const {
  if (config_.tokenizer != "bytes" && !fs::exists(config_.tokenizer)) {
    throw DataError("--tokenizer {}: neither train nor bytes, and no such file or folder",
                    config_.tokenizer);
  }
  Tokenizer tokenizer =
      config_.tokenizer == "bytes" ? Tokenizer::bytes() : Tokenizer::load(config_.tokenizer);
  if (!tokenizer.end_of_text()) {
    throw DataError(
        "{} has no end-of-text token, which must part the documents\nGive it a special token named "
        "<|endoftext|>.",
        config_.tokenizer);
  }
  return tokenizer;
}

// The words of training documents alone: what is validated must not shape the vocabulary.
Tokenizer Preparation::train_tokenizer() const {
  struct Counted {
    WordCounts words;
    int64_t consumed_bytes = 0;
  };
  BpeTrainer trainer;
  TextReader reader(files_, plan_.cut);
  OrderedPipeline<TextBlock, Counted> pipeline;
  pipeline.produce = [&] { return reader.next(); };
  pipeline.weight = [](const TextBlock& block) { return static_cast<int64_t>(block.text.size()); };
  pipeline.transform = [&](const TextBlock& block) {
    Counted counted;
    counted.consumed_bytes = block.consumed_bytes;
    for_each_text(block, plan_, config_.field, [&](std::string_view text, bool validation, bool) {
      if (!validation) trainer.count_words(text, counted.words);
    });
    return counted;
  };
  pipeline.consume = [&](const Counted& counted) {
    trainer.add_words(counted.words);
    if (progress_) progress_("training the tokenizer", counted.consumed_bytes, total_bytes_);
  };
  pipeline.run(threads_, pipeline_bytes(threads_));
  return trainer.train(config_.vocab_size);
}

void Preparation::encode(const Tokenizer& tokenizer, const fs::path& folder) {
  const int32_t end_of_text = tokenizer.end_of_text().value();
  const int64_t vocab_size = tokenizer.vocab_size();
  std::array<ShardWriter, 2> writers{
      ShardWriter(folder, kSplitNames[0], vocab_size, config_.max_shard_tokens),
      ShardWriter(folder, kSplitNames[1], vocab_size, config_.max_shard_tokens)};
  std::array<PrepareReport::Split*, 2> splits{&report_.train, &report_.validation};
  TextReader reader(files_, plan_.cut);
  OrderedPipeline<TextBlock, Encoded> pipeline;
  pipeline.produce = [&] { return reader.next(); };
  pipeline.weight = [](const TextBlock& block) { return static_cast<int64_t>(block.text.size()); };
  pipeline.transform = [&](const TextBlock& block) {
    Encoded encoded;
    encoded.consumed_bytes = block.consumed_bytes;
    for_each_text(block, plan_, config_.field,
                  [&](std::string_view text, bool validation, bool document_ends) {
                    Encoded::Part& part = encoded.parts[validation];
                    // A third of the bytes, or more, and so it hardly grows step by step.
                    if (part.ids.empty()) part.ids.reserve(block.text.size() / 3);
                    tokenizer.encode(text, part.ids);
                    if (document_ends) part.ids.push_back(end_of_text);
                    part.bytes += static_cast<int64_t>(text.size());
                    part.documents += document_ends;
                  });
    return encoded;
  };
  pipeline.consume = [&](const Encoded& encoded) {
    for (size_t i = 0; i < 2; i++) {
      const Encoded::Part& part = encoded.parts[i];
      writers[i].append(part.ids);
      splits[i]->documents += part.documents;
      splits[i]->bytes += part.bytes;
      splits[i]->tokens += static_cast<int64_t>(part.ids.size());
    }
    if (progress_) progress_("encoding", encoded.consumed_bytes, total_bytes_);
  };
  pipeline.run(threads_, pipeline_bytes(threads_));
  for (size_t i = 0; i < 2; i++) shards_[i] = writers[i].finish();
}

void Preparation::check_and_complete_report(const Tokenizer& tokenizer) {
  report_.vocab_size = tokenizer.vocab_size();
  report_.documents = plan_.documents;
  report_.bytes = plan_.bytes;
  report_.empty = plan_.empty;
  report_.duplicate = plan_.duplicate;
  report_.short_documents = plan_.short_documents;
  report_.split_by_document = plan_.by_document;
  if (report_.train.bytes + report_.validation.bytes != plan_.kept_bytes) {
    throw DataError("the input changed while it was read: run again when it is at rest");
  }
  if (report_.train.tokens == 0) {
    throw DataError(
        "the input is too small to split: {} bytes, and all of them in validation\nGive more text, "
        "or --validation-fraction 0.",
        plan_.kept_bytes);
  }
}

void Preparation::write_description(const Tokenizer& tokenizer, const fs::path& folder) const {
  const std::string tokenizer_json = tokenizer.to_json();
  write_file_atomically(folder / "tokenizer.json", tokenizer_json);
  ordered_json description;
  description["format"] = 1;
  description["program"] = "lockstep " LOCKSTEP_VERSION;
  description["tokenizer"] = {{"xxh3", xxh3_hex(std::as_bytes(std::span(tokenizer_json)))},
                              {"vocab_size", tokenizer.vocab_size()},
                              {"end_of_text", tokenizer.end_of_text().value()}};
  for (size_t i = 0; i < 2; i++) {
    const PrepareReport::Split& split = i == 0 ? report_.train : report_.validation;
    if (split.tokens == 0) continue;
    ordered_json shards = ordered_json::array();
    for (const ShardInfo& shard : shards_[i]) {
      shards.push_back({{"file", shard.file},
                        {"tokens", shard.tokens},
                        {"size_bytes", shard.size_bytes},
                        {"xxh3", shard.xxh3}});
    }
    description["splits"][kSplitNames[i]] = {{"documents", split.documents},
                                             {"bytes", split.bytes},
                                             {"tokens", split.tokens},
                                             {"shards", std::move(shards)}};
  }
  ordered_json inputs = ordered_json::array();
  for (const fs::path& input : config_.inputs) inputs.push_back(input.string());
  description["prepared"] = {{"inputs", std::move(inputs)},
                             {"files", files_.size()},
                             {"tokenizer", config_.tokenizer},
                             {"field", config_.field},
                             {"validation_fraction", config_.validation_fraction},
                             {"split", plan_.by_document ? "documents" : "end"},
                             {"seed", config_.seed},
                             {"documents", plan_.documents},
                             {"bytes", plan_.bytes},
                             {"empty", plan_.empty},
                             {"duplicate", plan_.duplicate},
                             {"short", plan_.short_documents}};
  // Paths may hold bytes that are not UTF-8; JSON cannot.
  write_file_atomically(
      folder / "dataset.json",
      description.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace

PrepareReport prepare(const PrepareConfig& config, const PrepareProgress& progress) {
  validate(config);
  return Preparation(config, progress).run();
}

}  // namespace lockstep
