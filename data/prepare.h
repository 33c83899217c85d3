#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

struct PrepareConfig {
  std::vector<std::filesystem::path> inputs;  // files and folders
  std::filesystem::path output;               // the dataset folder; must not exist, or be empty
  std::string tokenizer = "train";            // "train", "bytes", or the path of a tokenizer file
  int64_t vocab_size = 8192;                  // of a tokenizer trained here
  double validation_fraction = 0.05;          // in [0, 1); 0: no validation split
  std::string field = "text";                 // of JSON lines
  uint64_t seed = 0;                          // of the choice of validation documents
  int threads = 0;                            // 0: one a core
  int64_t max_shard_tokens = 100'000'000;     // of one .bin file, below 2^31
};

struct PrepareReport {
  struct Split {
    int64_t documents = 0;
    int64_t bytes = 0;   // of text
    int64_t tokens = 0;  // one end-of-text a document included
    double bytes_per_token() const { return tokens == 0 ? 0 : double(bytes) / double(tokens); }
  };
  Split train, validation;
  int64_t vocab_size = 0;
  // Of the input. Empty (or only white space) and duplicate documents were dropped; short ones
  // (fewer than kShortDocumentBytes) were kept.
  int64_t documents = 0, bytes = 0;
  int64_t empty = 0, duplicate = 0, short_documents = 0;
  bool split_by_document = false;  // else validation is the end of the input
};

inline constexpr int64_t kShortDocumentBytes = 64;

// Called on the thread that called prepare, often: bytes of input files (on disk) done and in all,
// in a phase: "scanning", "training the tokenizer", "encoding".
using PrepareProgress =
    std::function<void(std::string_view phase, int64_t done_bytes, int64_t total_bytes)>;

// Turns text into a dataset folder (docs/dataset_format.md). The input is text files, folders of
// them (every file below, sorted; names that begin with a dot are passed over) and JSON lines
// (.jsonl, .ndjson, .json), gzip-compressed or not. It is read two or three times, as a stream, so
// it must consist of regular files. The output does not depend on the number of threads, and
// appears under its name only when complete.
//
// Throws UsageError when the output exists or a setting is out of range, and DataError when an
// input is missing, unreadable, damaged, binary (but not for the tokenizer `bytes`) or empty, a
// JSON line is broken or lacks the field, or the disk is full; the unfinished output is then
// removed.
PrepareReport prepare(const PrepareConfig& config, const PrepareProgress& progress = {});

}  // namespace lockstep
