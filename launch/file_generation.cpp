#include "launch/file_generation.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "comm/agreement.h"
#include "comm/work_queue.h"
#include "launch/command.h"
#include "launch/completions.h"
#include "launch/signals.h"
#include "launch/text.h"
#include "trainer/live_line.h"

namespace lockstep::launch {
namespace {

// Rows that go through the model after the prompt, at most.
int64_t cost(const GenerationRequest& request, int64_t context_length) {
  return std::min(request.options.max_tokens, context_length) * request.options.beams.num_beams;
}

// On standard error: on a terminal a live line, elsewhere one about every twentieth of the prompts.
class PromptProgress {
 public:
  PromptProgress(bool shown, size_t prompts, size_t done, int64_t cost)
      : line_(shown), prompts_(prompts), done_(done), cost_(cost) {}

  void add(const std::string& completion, int64_t cost) {
    const auto now = Clock::now();
    done_++;
    tokens_ += static_cast<int64_t>(nlohmann::json::parse(completion).at("tokens").size());
    done_cost_ += cost;
    const bool last = done_ == prompts_;
    if (!line_.on_terminal()) {
      if (last || done_ % std::max<size_t>(1, prompts_ / 20) == 0) line_.note(joined(words()));
    } else if (last || now - drawn_ > std::chrono::milliseconds(100)) {
      drawn_ = now;
      const double share = static_cast<double>(done_) / static_cast<double>(prompts_);
      line_.draw(bar_line(share, words(), line_.width()));
    }
  }

  // Of what this start has done.
  std::string summary() const {
    return fmt::format("{} tokens, {:.1f} s, {} tokens/s", grouped(tokens_), seconds(),
                       grouped(rate()));
  }

 private:
  using Clock = std::chrono::steady_clock;
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  int64_t rate() const { return std::llround(static_cast<double>(tokens_) / seconds()); }

  std::vector<Word> words() const {
    std::vector<Word> all{{fmt::format("{}/{} prompts", done_, prompts_), 0},
                          {grouped(rate()) + " tokens/s", 2}};
    const double left = static_cast<double>(cost_ - done_cost_);
    if (left > 0) {
      all.push_back(
          {duration_text(seconds() * left / static_cast<double>(done_cost_)) + " left", 1});
    }
    return all;
  }

  LiveLine line_;
  const size_t prompts_;
  size_t done_;
  const int64_t cost_;  // of what this start has to do
  int64_t done_cost_ = 0, tokens_ = 0;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_;
};

}  // namespace

FileGeneration::FileGeneration(const std::filesystem::path& output, const Work& work, size_t count,
                               MpiSession* session)
    : output_(output), session_(session) {
  if (session != nullptr) {
    const std::vector<std::string> keys = said_by_all(session->world(), work.key());
    const auto other = std::find_if(keys.begin(), keys.end(),
                                    [&](const std::string& key) { return key != keys.front(); });
    if (other != keys.end()) {
      throw SharedError(ExitCode::usage,
                        fmt::format("worker {} was given other prompts, options or another "
                                    "checkpoint than worker 0: give all the same files",
                                    other - keys.begin()));
    }
  }
  on_every_worker(session, [&] {
    if (first_worker(session)) file_ = CompletionFile::open(output, work, count);
  });
  whole_ = from_first(file_ && file_->whole() ? 1 : 0) == 1;
  if (whole_) {
    spdlog::info("{} is there already, with all of its {}", output.string(),
                 plural(static_cast<int64_t>(count), "completion"));
  } else if (file_ && file_->num_done() > 0) {
    spdlog::info("resuming: {} of {} are done", file_->num_done(),
                 plural(static_cast<int64_t>(count), "prompt"));
  }
}

// The longest first, so that none begins when the others are about to end.
std::vector<size_t> FileGeneration::missing(const std::vector<GenerationRequest>& requests,
                                            int64_t context_length) const {
  std::vector<size_t> all;
  for (size_t i = 0; i < requests.size(); i++) {
    if (file_ && !file_->has(i)) all.push_back(i);
  }
  std::stable_sort(all.begin(), all.end(), [&](size_t a, size_t b) {
    return std::pair(cost(requests[a], context_length), requests[a].prompt.size()) >
           std::pair(cost(requests[b], context_length), requests[b].prompt.size());
  });
  return all;
}

ExitCode FileGeneration::run(Generator& generator, const std::vector<GenerationRequest>& requests,
                             BatchLimits limits) {
  const int64_t context_length = generator.config().context_length;
  const std::vector<size_t> items = missing(requests, context_length);
  int64_t whole_cost = 0;
  for (const size_t i : items) whole_cost += cost(requests[i], context_length);
  // None takes more than its share while others have nothing to do.
  const auto count = static_cast<int64_t>(from_first(static_cast<double>(items.size())));
  const int64_t workers = session_ == nullptr ? 1 : session_->size();
  limits.batch_size = std::clamp<int64_t>((count + workers - 1) / workers, 1, limits.batch_size);

  PromptProgress progress(first_worker(session_), requests.size(), requests.size() - items.size(),
                          whole_cost);
  WorkQueue queue(
      session_, items,
      [&](size_t i, const std::string& completion) {
        file_->add(i, completion);
        progress.add(completion, cost(requests[i], context_length));
      },
      [] { return stop_signal() != 0; });
  generator.generate(
      requests, limits,
      [&](size_t i, const Completion& completion) {
        if (completion.finish_reason == FinishReason::interrupted) return;
        queue.put(i, completion_json(requests[i].prompt, completion, generator.tokenizer(), false));
      },
      [&] { return queue.stopped(); }, [&] { return queue.take(); });
  queue.finish();
  if (!complete()) return ExitCode::stopped;
  spdlog::info("[{}, {}]", plural(static_cast<int64_t>(requests.size()), "prompt"),
               progress.summary());
  return ExitCode::done;
}

// Writes the output when nothing is missing; else the request to stop came first.
bool FileGeneration::complete() {
  const bool all = from_first(file_ && file_->all_done() ? 1 : 0) == 1;
  if (!all) {
    if (file_) {
      spdlog::info("stopped on request: {} of {} are done; run it again to go on",
                   file_->num_done(), plural(static_cast<int64_t>(file_->count()), "prompt"));
    }
    return false;
  }
  on_every_worker(session_, [&] {
    if (file_) file_->finish();
  });
  return true;
}

// The first worker's value, which is not negative.
double FileGeneration::from_first(double value) const {
  double first = first_worker(session_) ? value : 0;
  if (session_ != nullptr) session_->world().all_reduce(&first, 1, ReduceOp::max);
  return first;
}

}  // namespace lockstep::launch
