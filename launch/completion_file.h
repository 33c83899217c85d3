#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/run_lease.h"

namespace lockstep::launch {

// What decides the content of a file of completions.
struct Work {
  std::filesystem::path checkpoint;
  std::vector<std::pair<std::string, std::string>> values;  // by name
  std::string key() const;                                  // XXH3 of the values, in hexadecimal
};

// OUT.jsonl of `generate --output`: a completion a line, in the order of the prompts, each with the
// key of the work. Until all are there they stand in a journal, OUT.jsonl.partial, in the order in
// which they came: a line that says what the work is, then {"index": N, "completion": {...}} each.
// The journal outlives whatever ends the program; what follows its last whole line is dropped. One
// program at a time writes it: OUT.jsonl.partial.lease is its lease (trainer/run_lease.h).
class CompletionFile {
 public:
  // Opens the journal, or begins one. Throws UsageError when it is of other work (naming what
  // differs), when the output is there and of other work, and when another program writes it now;
  // DataError when it cannot be written. Waits for up to RunLease::kStale where another machine's
  // program left the lease.
  static std::unique_ptr<CompletionFile> open(const std::filesystem::path& output, const Work& work,
                                              size_t count);
  ~CompletionFile();  // removes a journal that holds nothing
  CompletionFile(const CompletionFile&) = delete;
  CompletionFile& operator=(const CompletionFile&) = delete;

  bool whole() const { return whole_; }  // the output is there
  bool has(size_t index) const { return places_[index].has_value(); }
  size_t count() const { return places_.size(); }
  size_t num_done() const { return num_done_; }
  bool all_done() const { return num_done_ == count(); }

  // `completion`: a JSON object without its end of line. Throws DataError, and UsageError when
  // another program has taken the journal over; it is as it was then.
  void add(size_t index, const std::string& completion);
  // All are there: writes the output, and removes the journal. Throws DataError.
  void finish();

 private:
  struct Place {
    size_t begin, size;  // bytes of the journal
  };
  CompletionFile(std::filesystem::path output, Work work, size_t count);
  void take_lease();
  void open_journal();
  void check_ours() const;
  void read_journal();
  void check_work(const std::string& header) const;
  bool is_output_of_work() const;
  std::optional<size_t> read_line(const std::string& line, size_t begin);
  void append(const std::string& text);

  const std::filesystem::path output_, journal_;
  const Work work_;
  RunLease lease_;
  int descriptor_ = -1;
  size_t size_ = 0;  // of the journal, bytes
  std::vector<std::optional<Place>> places_;
  size_t num_done_ = 0;
  bool whole_ = false;
};

}  // namespace lockstep::launch
