#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "inference/generator.h"
#include "inference/speculation.h"
#include "inference/token_logits.h"
#include "model/kv_pages.h"

namespace lockstep {

// What proposes tokens: a model, or a look at what stands in the text already.
struct DraftSource {
  Decoder* decoder = nullptr;  // null: prompt_lookup
  int64_t pass_bytes = 0;      // of the weights that a pass reads
};

// What belongs to one request.
struct Draft {
  DraftLength length;
  std::vector<Proposal> proposals;     // of the pass under way
  std::optional<KvSequence> sequence;  // of the draft model, as far as it has come
};

// Proposes tokens to requests that run together. What it proposes to one is a function of that
// request and its past alone (on the CPU), and so is the text that comes of it.
class Drafter {
 public:
  // A request that wants proposals: at most `most` of them, which go to the end of `tokens` too.
  struct Task {
    Draft& draft;
    std::vector<int32_t>& tokens;  // prompt, then what was generated
    size_t prompt_size;
    const SamplingOptions& options;
    uint64_t stream_index;
    int64_t most;
    GenerationStatistics& statistics;  // counts what is read and proposed
  };

  // page_size: of the model's own pages, and of those of keys and values here. Ids from `known` on
  // are never proposed; nothing is after `end`.
  Drafter(const DraftSource& source, DType precision, Device device, int64_t page_size,
          size_t known, std::optional<int32_t> end);

  // Memory of keys and values: that a request of at most `room` tokens may come to need, that this
  // one has, that all have, that there is, free pages included.
  int64_t bytes_for(int64_t prompt_size, int64_t room) const;
  int64_t bytes_of(const Draft& draft) const;
  int64_t bytes_in_use() const;
  int64_t bytes_allocated() const;
  void release_free();

  // A draft model proposes nothing beyond its context. `buffers`: of each thread. Throws DataError
  // when the draft's logits are not numbers.
  void propose(std::span<const Task> tasks, std::span<SamplingBuffers> buffers);

  // The proposals have been looked at; before them there were `before` tokens.
  static void settle(Draft& draft, int64_t before, const NextTokens& next);

 private:
  struct Growing {
    const Task* task;
    int64_t left;  // tokens to propose
  };
  static void look_up(const Task& task);
  int64_t count(const Task& task) const;
  void compute_prompts(std::span<const Growing> growing);
  void grow(std::span<Growing> growing, std::span<SamplingBuffers> buffers);

  const DraftSource source_;
  const size_t known_;
  const std::optional<int32_t> end_;
  std::optional<TokenLogits> model_;
  std::unique_ptr<KvPages> pages_;
};

}  // namespace lockstep
