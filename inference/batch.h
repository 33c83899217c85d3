#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "inference/beam_search.h"
#include "inference/drafter.h"
#include "inference/generator.h"
#include "inference/text_stream.h"
#include "inference/token_logits.h"
#include "model/decoder.h"

// Requests that run together, continuously (Yu et al., "Orca", 2022): each pass computes the next
// token of all of them (with a draft: some, inference/speculation.h), and a request that ends
// leaves its place to the next at once.
//
// A request is admitted, in the order of `next`, when there is a place, and memory for all that it
// may come to need: it never has to stop midway, or to be computed again, for want of memory.
// (Computed again, generated tokens would go through the model as a prompt does, with other bits.)
namespace lockstep {

// What a batch runs on.
struct BatchModel {
  Decoder& decoder;
  const Tokenizer& tokenizer;
  DType precision;
  Device device;
  int64_t pass_bytes;  // of the weights that a pass reads
  std::optional<DraftSource> draft = {};
};

class Batch {
 public:
  // As Generator::generate.
  Batch(const BatchModel& model, std::span<const GenerationRequest> requests,
        const BatchLimits& limits, const std::function<void(size_t, Completion)>& on_done,
        const std::function<bool()>& interrupted, const NextRequest& next);
  void run();

  // Memory of keys and values that there is, free pages included: never more than the limit.
  int64_t kv_cache_bytes() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Waiting {
    size_t index = 0;  // of the request
    std::vector<int32_t> tokens;
    int64_t most;  // tokens to generate
    int64_t room;  // tokens to keep keys and values of, at most
    int64_t num_beams;
  };
  struct Running {
    Running(const GenerationRequest& of, Waiting waiting, KvSequence sequence, int64_t bytes);
    const GenerationRequest& request;
    const size_t index, prompt_size;
    const int64_t most, bytes;          // bytes: of keys and values that it may come to need
    std::vector<int32_t> tokens;        // prompt, then what was generated (not by beams), then, in
                                        // a pass, what the draft proposes
    std::vector<KvSequence> sequences;  // one, or one a beam
    std::optional<BeamSearch> beams;
    Draft draft;
    TextStream text;
    Completion completion;
    std::optional<FinishReason> ended;
    Clock::time_point started = Clock::now(), prompt_done;
  };

  // Ids beyond the tokenizer's (a padded vocabulary) are never chosen.
  size_t known() const { return static_cast<size_t>(model_.tokenizer.vocab_size()); }
  std::string which(size_t index) const;
  template <class F>
  void name_in_errors(size_t index, F&& f) const;
  Waiting wait(size_t index) const;
  int64_t bytes_for(const Waiting& waiting) const;
  int64_t bytes_of(const Running& running) const;
  int64_t outstanding_bytes() const;
  bool has_place() const;
  bool make_room(const Waiting& next, const KvSequence& sequence);
  bool look_ahead();
  size_t admit();
  void compute_prompts(size_t count);
  void draft();
  void compute_next();
  void count_pass(Running& running) const;
  void choose(std::span<const std::unique_ptr<Running>> running, std::span<const float> logits);
  void take_all(Running& running, const NextTokens& next, std::span<const float> logits);
  void take(Running& running, int32_t token, std::span<const float> logits) const;
  bool ends(const Running& running, const Beam& beam, int32_t token) const;
  void advance(Running& running, std::span<const float> logits) const;
  ScoredText finished(const Running& running, EndedBeam beam) const;
  void finish_beams(Running& running) const;
  void hand_over(Running& running);
  void remove_ended();
  void interrupt();

  const BatchModel model_;
  const std::span<const GenerationRequest> requests_;
  const BatchLimits limits_;
  const std::function<void(size_t, Completion)>& on_done_;
  const std::function<bool()>& interrupted_;
  const NextRequest& next_;
  std::vector<Waiting> waiting_;  // by index; without their tokens once they run
  std::optional<size_t> ahead_;   // the index that is next, taken from next_ and not yet admitted
  bool exhausted_ = false;        // next_ has none any more
  std::unique_ptr<KvPages> pages_;
  std::optional<Drafter> drafter_;
  std::vector<std::unique_ptr<Running>> running_;
  TokenLogits logits_;
  std::vector<SamplingBuffers> buffers_;  // of each thread
};

}  // namespace lockstep
