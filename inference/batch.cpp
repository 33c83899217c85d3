#include "inference/batch.h"

#include <algorithm>

#include "core/check.h"
#include "core/range.h"
#include "core/text.h"
#include "core/thread_pool.h"

namespace lockstep {
namespace {

// Small, so that little of the last one is empty and sharing begins early.
constexpr int64_t kPageTokens = 16;

// Prompts that together have up to so many tokens are computed at once: tiles of rows are full, and
// those who run already do not wait long.
constexpr int64_t kPromptTokens = 128;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void truncate(std::vector<int32_t>& tokens, int64_t max_tokens, int64_t context_length) {
  const int64_t most = context_length - max_tokens;
  if (most < 1) {
    throw UsageError("\"max_tokens\" is {}; it must be less than the model's context of {} tokens",
                     max_tokens, context_length);
  }
  const auto count = static_cast<int64_t>(tokens.size());
  if (count > most) tokens.erase(tokens.begin(), tokens.end() - most);
}

// Special tokens in the prompt count as such. Nothing to continue: a new document.
std::vector<int32_t> prompt_tokens(const GenerationRequest& request, const Tokenizer& tokenizer,
                                   int64_t context_length) {
  std::vector<int32_t> tokens = tokenizer.encode_with_special_tokens(request.prompt);
  if (tokens.empty()) {
    if (!tokenizer.end_of_text()) {
      throw UsageError("the prompt is empty, and the model has no end-of-text token to start from");
    }
    tokens.push_back(*tokenizer.end_of_text());
  }
  if (request.truncate_prompt) truncate(tokens, request.options.max_tokens, context_length);
  const auto count = static_cast<int64_t>(tokens.size());
  if (count > context_length) {
    throw UsageError("the prompt has {} tokens; the model's context holds {}", count,
                     context_length);
  }
  return tokens;
}

}  // namespace

Batch::Running::Running(const GenerationRequest& of, Waiting waiting, KvSequence sequence,
                        int64_t bytes_needed)
    : request(of),
      index(waiting.index),
      prompt_size(waiting.tokens.size()),
      most(waiting.most),
      bytes(bytes_needed),
      tokens(std::move(waiting.tokens)),
      text(of.options.stop, of.on_text) {
  completion.finish_reason =
      most < of.options.max_tokens ? FinishReason::context : FinishReason::length;
  completion.statistics.prompt_tokens = static_cast<int64_t>(prompt_size);
  completion.statistics.shared_tokens = sequence.length();
  sequences.push_back(std::move(sequence));
}

Batch::Batch(const BatchModel& model, std::span<const GenerationRequest> requests,
             const BatchLimits& limits, const std::function<void(size_t, Completion)>& on_done,
             const std::function<bool()>& interrupted, const NextRequest& next)
    : model_(model),
      requests_(requests),
      limits_(limits),
      on_done_(on_done),
      interrupted_(interrupted),
      next_(next),
      logits_(model.decoder, model.precision, model.device),
      buffers_(static_cast<size_t>(num_threads())) {
  CHECK(limits.batch_size >= 1);
  int64_t longest = 0;
  for (size_t i = 0; i < requests.size(); i++) {
    waiting_.push_back(wait(i));
    longest = std::max(longest, waiting_.back().room);
  }
  // A GPU's kernels read sequences of one page.
  const int64_t page_size = model.device == Device::cpu ? kPageTokens : round_up(longest, 4);
  pages_ =
      std::make_unique<KvPages>(model.decoder.config(), page_size, model.precision, model.device);
  if (model.draft) {
    drafter_.emplace(*model.draft, model.precision, model.device, page_size, known(),
                     model.tokenizer.end_of_text());
  }
  for (const Waiting& w : waiting_) {
    if (bytes_for(w) <= limits.kv_cache_bytes) continue;
    throw UsageError(
        "{}keys and values of {} tokens{}{} need {}, and --kv-cache-memory is {}: raise it, or "
        "lower --max-tokens",
        which(w.index), w.room, w.num_beams > 1 ? fmt::format(" in {} beams", w.num_beams) : "",
        model.draft && model.draft->decoder != nullptr ? ", the draft's too," : "",
        size_text(bytes_for(w)), size_text(limits.kv_cache_bytes));
  }
}

// Where there are several requests, the one that an error is about.
std::string Batch::which(size_t index) const {
  if (!requests_[index].origin.empty()) return requests_[index].origin;
  return requests_.size() > 1 ? fmt::format("prompt {}: ", index + 1) : "";
}

// Says which request a UsageError is about.
template <class F>
void Batch::name_in_errors(size_t index, F&& f) const {
  try {
    f();
  } catch (const UsageError& error) {
    throw UsageError("{}{}", which(index), error.what());
  }
}

Batch::Waiting Batch::wait(size_t index) const {
  const SamplingOptions& options = requests_[index].options;
  const ModelConfig& config = model_.decoder.config();
  Waiting waiting;
  name_in_errors(index, [&] {
    validate(options);
    validate_tokens(options, model_.tokenizer.vocab_size());
    if (model_.draft && options.beams.on()) {
      throw UsageError("--draft contradicts --num-beams: a draft proposes one text; leave one out");
    }
    std::vector<int32_t> tokens =
        prompt_tokens(requests_[index], model_.tokenizer, config.context_length);
    const auto size = static_cast<int64_t>(tokens.size());
    // The last token needs no place: nothing is computed from it.
    const int64_t most = std::min(config.context_length - size + 1, options.max_tokens);
    waiting = {index, std::move(tokens), most, size + most - 1, options.beams.num_beams};
  });
  return waiting;
}

void Batch::run() {
  while (true) {
    while (const size_t count = admit()) compute_prompts(count);
    if (running_.empty()) return;
    compute_next();
  }
}

// Memory for keys and values that a request may come to need. Beams have the whole pages of the
// prompt in common. What is proposed stays within the room that the text may take.
int64_t Batch::bytes_for(const Waiting& waiting) const {
  const auto prompt_size = static_cast<int64_t>(waiting.tokens.size());
  const int64_t common = prompt_size / pages_->page_size();
  const int64_t pages = common + waiting.num_beams * (pages_->pages_for(waiting.room) - common);
  return pages * pages_->page_bytes() +
         (drafter_ ? drafter_->bytes_for(prompt_size, waiting.room) : 0);
}

int64_t Batch::bytes_of(const Running& running) const {
  return distinct_pages(running.sequences) * pages_->page_bytes() +
         (drafter_ ? drafter_->bytes_of(running.draft) : 0);
}

// Memory that those who run may still take.
int64_t Batch::outstanding_bytes() const {
  int64_t bytes = 0;
  for (const auto& running : running_) bytes += running->bytes - bytes_of(*running);
  return bytes;
}

bool Batch::has_place() const { return static_cast<int64_t>(running_.size()) < limits_.batch_size; }

int64_t Batch::kv_cache_bytes() const {
  return pages_->allocated() * pages_->page_bytes() + (drafter_ ? drafter_->bytes_allocated() : 0);
}

// Whether there is memory for a request that has this sequence so far, beside those who run.
bool Batch::make_room(const Waiting& next, const KvSequence& sequence) {
  const int64_t in_use =
      pages_->in_use() * pages_->page_bytes() + (drafter_ ? drafter_->bytes_in_use() : 0);
  const int64_t held = sequence.num_pages() * pages_->page_bytes();
  const int64_t more = outstanding_bytes() + bytes_for(next) - held;
  if (in_use + more > limits_.kv_cache_bytes) return false;
  // Free pages of one model are of no use to the other.
  if (model_.draft && model_.draft->decoder != nullptr &&
      kv_cache_bytes() + more > limits_.kv_cache_bytes) {
    pages_->release_free();
    drafter_->release_free();
  }
  return true;
}

// Whether there is a next request; it stands in ahead_ then.
bool Batch::look_ahead() {
  if (!ahead_ && !exhausted_) {
    ahead_ = next_();
    exhausted_ = !ahead_;
  }
  return ahead_.has_value();
}

// Takes up the next requests: as many as have room, and whose prompts go through the model
// together. One that begins as another of them waits until it can share that one's pages.
size_t Batch::admit() {
  size_t count = 0;
  const auto page_size = static_cast<size_t>(pages_->page_size());
  std::vector<std::vector<int32_t>> first_pages;
  for (int64_t rows = 0; has_place() && look_ahead(); count++) {
    Waiting& next = waiting_[*ahead_];
    KvSequence sequence(*pages_);
    sequence.share(next.tokens);
    rows += static_cast<int64_t>(next.tokens.size()) - sequence.length();
    if ((count > 0 && rows > kPromptTokens) || !make_room(next, sequence)) break;
    if (next.tokens.size() > page_size && sequence.length() == 0) {
      std::vector<int32_t> first(next.tokens.begin(), next.tokens.begin() + page_size);
      if (std::find(first_pages.begin(), first_pages.end(), first) != first_pages.end()) break;
      first_pages.push_back(std::move(first));
    }
    const GenerationRequest& request = requests_[next.index];
    const int64_t bytes = bytes_for(next);
    running_.push_back(
        std::make_unique<Running>(request, std::move(next), std::move(sequence), bytes));
    if (drafter_) running_.back()->completion.statistics.draft.emplace();
    ahead_.reset();
  }
  return count;
}

// The prompts of the last `count` that run, and their first tokens.
void Batch::compute_prompts(size_t count) {
  const std::span<const std::unique_ptr<Running>> added = std::span(running_).last(count);
  std::vector<NewTokens> batch;
  for (const auto& running : added) {
    KvSequence& sequence = running->sequences.front();
    batch.push_back({&sequence, std::span(running->tokens).subspan(sequence.length())});
  }
  const std::span<const float> logits = logits_.after(batch, kernels::Rows::in_tiles);
  for (const auto& running : added) {
    running->sequences.front().publish(running->tokens);
    running->prompt_done = Clock::now();
    running->completion.statistics.prompt_seconds = seconds_since(running->started);
    if (!running->request.options.beams.on()) continue;
    running->beams.emplace(
        running->request.options, running->tokens, running->most,
        [this, &of = *running](const Beam& beam, int32_t token) { return ends(of, beam, token); });
  }
  choose(added, logits);
  for (const auto& running : added) {
    running->completion.statistics.first_token_seconds = seconds_since(running->started);
  }
  remove_ended();
}

// Proposals for all that run, as many as the text has room for beside the token that a pass brings
// in any case.
void Batch::draft() {
  std::vector<Drafter::Task> tasks;
  for (const auto& running : running_) {
    Running& r = *running;
    const int64_t most = r.most - static_cast<int64_t>(r.completion.tokens.size()) - 1;
    tasks.push_back({r.draft, r.tokens, r.prompt_size, r.request.options, r.request.stream_index,
                     most, r.completion.statistics});
  }
  drafter_->propose(tasks, buffers_);
}

// The next token of all that run, and what may follow it.
void Batch::compute_next() {
  if (drafter_) draft();
  std::vector<NewTokens> batch;
  for (const auto& running : running_) {
    if (running->beams) {
      for (size_t n = 0; n < running->sequences.size(); n++) {
        const int32_t& last = running->beams->beams()[n].tokens.back();
        batch.push_back({&running->sequences[n], std::span(&last, 1)});
      }
    } else {
      const size_t count = 1 + running->draft.proposals.size();
      batch.push_back({&running->sequences.front(), std::span(running->tokens).last(count),
                       static_cast<int64_t>(count)});
    }
  }
  const std::span<const float> logits = logits_.after(batch, kernels::Rows::one_by_one);
  for (const auto& running : running_) count_pass(*running);
  choose(running_, logits);
  remove_ended();
}

void Batch::count_pass(Running& running) const {
  GenerationStatistics& statistics = running.completion.statistics;
  statistics.passes++;
  statistics.passes_bytes += model_.pass_bytes / static_cast<int64_t>(running_.size());
  const int64_t token_bytes = pages_->page_bytes() / pages_->page_size();
  for (const KvSequence& sequence : running.sequences) {
    statistics.passes_bytes += token_bytes * sequence.length();
  }
}

void Batch::choose(std::span<const std::unique_ptr<Running>> running,
                   std::span<const float> logits) {
  for (const auto& r : running) {
    GenerationStatistics& statistics = r->completion.statistics;
    const int64_t tokens = distinct_pages(r->sequences) * pages_->page_size();
    statistics.kv_cache_bytes = std::max(statistics.kv_cache_bytes, bytes_of(*r));
    statistics.kv_cache_tokens = std::max(statistics.kv_cache_tokens, tokens);
  }
  if (interrupted_ && interrupted_()) return interrupt();
  const auto vocab_size = static_cast<size_t>(model_.decoder.config().vocab_size);
  std::vector<std::span<const float>> own;  // logits of each
  for (const auto& r : running) {
    own.push_back(logits.first((r->sequences.size() + r->draft.proposals.size()) * vocab_size));
    logits = logits.subspan(own.back().size());
  }
  std::vector<NextTokens> next(running.size());
  parallel_for(static_cast<int64_t>(running.size()), 1, [&](int64_t n, int64_t) {
    const Running& r = *running[n];
    if (r.beams) return;
    name_in_errors(r.index, [&] {
      next[n] = next_tokens(own[n], known(), {r.tokens, r.prompt_size}, r.draft.proposals,
                            r.request.options, r.request.stream_index,
                            model_.tokenizer.end_of_text(), buffers_[thread_index()]);
    });
  });
  for (size_t n = 0; n < running.size(); n++) {
    if (running[n]->beams) {
      name_in_errors(running[n]->index, [&] { advance(*running[n], own[n]); });
    } else {
      take_all(*running[n], next[n], own[n]);
    }
  }
}

// Takes the tokens of a pass until the text ends, and counts them. Keys and values of proposals
// that were not accepted are forgotten.
void Batch::take_all(Running& running, const NextTokens& next, std::span<const float> logits) {
  const size_t before = running.tokens.size() - running.draft.proposals.size();
  running.tokens.resize(before);
  running.sequences.front().truncate(static_cast<int64_t>(before + next.tokens.size()) - 1);
  if (drafter_) Drafter::settle(running.draft, static_cast<int64_t>(before), next);
  const auto vocab_size = static_cast<size_t>(model_.decoder.config().vocab_size);
  GenerationStatistics& statistics = running.completion.statistics;
  for (size_t n = 0; n < next.tokens.size() && !running.ended; n++) {
    take(running, next.tokens[n], logits.subspan(n * vocab_size, vocab_size));
    if (statistics.passes > 0) statistics.passes_tokens++;
    if (static_cast<int64_t>(n) < next.accepted) statistics.draft->accepted++;
  }
}

// Adds a token to the completion, or ends it.
void Batch::take(Running& running, int32_t token, std::span<const float> logits) const {
  Completion& completion = running.completion;
  const SamplingOptions& options = running.request.options;
  if (token == model_.tokenizer.end_of_text()) {
    running.ended = FinishReason::end_of_text;
    return;
  }
  completion.tokens.push_back(token);
  running.tokens.push_back(token);
  if (options.logprobs) {
    completion.logprobs.push_back(
        logprobs(logits, token, *options.logprobs, model_.tokenizer.vocab_size()));
  }
  if (running.text.push(model_.tokenizer.token_bytes(token))) {
    running.ended = FinishReason::stop;
  } else if (static_cast<int64_t>(completion.tokens.size()) == running.most) {
    running.ended = completion.finish_reason;
  }
}

// Whether a token ends the text of a beam.
bool Batch::ends(const Running& running, const Beam& beam, int32_t token) const {
  if (token == model_.tokenizer.end_of_text()) return true;
  const std::vector<std::string>& stops = running.request.options.stop;
  size_t longest = 0;
  for (const std::string& stop : stops) longest = std::max(longest, stop.size());
  std::string end(model_.tokenizer.token_bytes(token));
  const size_t enough = end.size() + longest;
  for (auto before = beam.tokens.rbegin(); before != beam.tokens.rend() && end.size() < enough;
       ++before) {
    end.insert(0, model_.tokenizer.token_bytes(*before));
  }
  return std::any_of(stops.begin(), stops.end(),
                     [&](const std::string& stop) { return end.find(stop) != std::string::npos; });
}

// Lets the beams grow by a token. Those that continue the same one hold the same pages.
void Batch::advance(Running& running, std::span<const float> logits) const {
  running.beams->step(logits, known());
  std::vector<KvSequence> next;
  for (const Beam& beam : running.beams->beams()) {
    next.push_back(running.sequences[beam.parent]);
  }
  running.sequences = std::move(next);
  GenerationStatistics& statistics = running.completion.statistics;
  if (statistics.passes > 0) statistics.passes_tokens++;
  if (running.sequences.empty()) running.ended = running.completion.finish_reason;
}

ScoredText Batch::finished(const Running& running, EndedBeam beam) const {
  ScoredText result{std::move(beam.tokens), "", running.completion.finish_reason, beam.score};
  if (result.tokens.back() == model_.tokenizer.end_of_text()) {
    result.finish_reason = FinishReason::end_of_text;
    result.tokens.pop_back();
  }
  TextStream text(running.request.options.stop, nullptr);
  for (const int32_t token : result.tokens) {
    if (text.push(model_.tokenizer.token_bytes(token))) result.finish_reason = FinishReason::stop;
  }
  result.text = text.text();
  return result;
}

// What beam search has found; interrupted, what it has until now.
void Batch::finish_beams(Running& running) const {
  Completion& completion = running.completion;
  for (EndedBeam& beam : running.beams->best()) {
    completion.beams.push_back(finished(running, std::move(beam)));
  }
  if (completion.beams.empty()) {
    const Beam& best = running.beams->beams().front();
    if (!best.tokens.empty()) {
      completion.beams.push_back(finished(running, {best.tokens, best.score}));
    }
  }
  if (completion.beams.empty()) return;
  completion.tokens = completion.beams.front().tokens;
  if (*running.ended != FinishReason::interrupted) {
    running.ended = completion.beams.front().finish_reason;
  }
  for (const int32_t token : completion.tokens) {
    if (running.text.push(model_.tokenizer.token_bytes(token))) break;
  }
}

void Batch::hand_over(Running& running) {
  Completion& completion = running.completion;
  GenerationStatistics& statistics = completion.statistics;
  if (running.beams) finish_beams(running);
  running.text.finish();
  completion.text = running.text.text();
  completion.finish_reason = *running.ended;
  completion.seconds = seconds_since(running.prompt_done);
  statistics.passes_seconds = seconds_since(running.started) - statistics.first_token_seconds;
  on_done_(running.index, std::move(completion));
}

void Batch::remove_ended() {
  for (const auto& running : running_) {
    if (running->ended) hand_over(*running);
  }
  std::erase_if(running_, [](const auto& running) { return running->ended.has_value(); });
}

void Batch::interrupt() {
  for (const auto& running : running_) running->ended = FinishReason::interrupted;
  for (; look_ahead(); ahead_.reset()) {
    Completion none;
    none.finish_reason = FinishReason::interrupted;
    on_done_(*ahead_, none);
  }
}

}  // namespace lockstep
