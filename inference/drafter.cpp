#include "inference/drafter.h"

#include <algorithm>

#include "core/thread_pool.h"
#include "inference/prompt_lookup.h"

namespace lockstep {
namespace {

// Prompts that together have fewer tokens than a tile has rows are computed at once; of longer ones
// the second finds the pages that it has in common with the first.
constexpr int64_t kPromptTokens = 64;

}  // namespace

Drafter::Drafter(const DraftSource& source, DType precision, Device device, int64_t page_size,
                 size_t known, std::optional<int32_t> end)
    : source_(source), known_(known), end_(end) {
  if (source.decoder == nullptr) return;
  model_.emplace(*source.decoder, precision, device);
  pages_ = std::make_unique<KvPages>(model_->config(), page_size, precision, device);
}

int64_t Drafter::bytes_for(int64_t prompt_size, int64_t room) const {
  if (!model_ || prompt_size >= model_->config().context_length) return 0;
  return pages_->pages_for(std::min(room, model_->config().context_length)) * pages_->page_bytes();
}

int64_t Drafter::bytes_of(const Draft& draft) const {
  return draft.sequence ? draft.sequence->num_pages() * pages_->page_bytes() : 0;
}

int64_t Drafter::bytes_in_use() const {
  return model_ ? pages_->in_use() * pages_->page_bytes() : 0;
}

int64_t Drafter::bytes_allocated() const {
  return model_ ? pages_->allocated() * pages_->page_bytes() : 0;
}

void Drafter::release_free() {
  if (model_) pages_->release_free();
}

void Drafter::propose(std::span<const Task> tasks, std::span<SamplingBuffers> buffers) {
  std::vector<Growing> growing;
  for (const Task& task : tasks) {
    if (!model_) look_up(task);
    if (model_ && count(task) > 0) growing.push_back({&task, count(task)});
  }
  compute_prompts(growing);
  const auto done = [](const Growing& g) { return g.left == 0; };
  while (!growing.empty()) {
    grow(growing, buffers);
    std::erase_if(growing, done);
  }
  for (const Task& task : tasks) {
    task.statistics.draft->proposed += static_cast<int64_t>(task.draft.proposals.size());
  }
}

void Drafter::look_up(const Task& task) {
  const int64_t most = std::min(task.most, task.draft.length.next());
  if (most <= 0) return;
  for (const int32_t token : prompt_lookup(task.tokens, most)) {
    task.draft.proposals.push_back({token, {{token, 1}}});
  }
  for (const Proposal& proposal : task.draft.proposals) task.tokens.push_back(proposal.token);
}

// How many tokens the draft model may propose. It does not compute the last: nothing follows.
int64_t Drafter::count(const Task& task) const {
  const auto size = static_cast<int64_t>(task.tokens.size());
  return std::min(
      {task.most, task.draft.length.next(), model_->config().context_length + 1 - size});
}

// Prompts that the draft model has not seen yet.
void Drafter::compute_prompts(std::span<const Growing> growing) {
  std::vector<NewTokens> batch;
  std::vector<std::span<const int32_t>> prompts;
  int64_t rows = 0;
  const auto compute = [&] {
    if (batch.empty()) return;
    model_->after(batch, kernels::Rows::in_tiles);
    for (size_t n = 0; n < batch.size(); n++) batch[n].sequence->publish(prompts[n]);
    batch.clear(), prompts.clear(), rows = 0;
  };
  for (const auto& [task, left] : growing) {
    if (task->draft.sequence) continue;
    KvSequence& sequence = task->draft.sequence.emplace(*pages_);
    prompts.push_back(std::span(task->tokens).first(task->prompt_size));
    const int64_t shared = sequence.share(prompts.back());
    batch.push_back({&sequence, prompts.back().subspan(static_cast<size_t>(shared))});
    rows += static_cast<int64_t>(batch.back().tokens.size());
    if (rows >= kPromptTokens) compute();
  }
  compute();
}

// One token more for each.
void Drafter::grow(std::span<Growing> growing, std::span<SamplingBuffers> buffers) {
  std::vector<NewTokens> batch;
  for (const auto& [task, left] : growing) {
    KvSequence& sequence = *task->draft.sequence;
    const auto held = static_cast<size_t>(sequence.length());
    batch.push_back({&sequence, std::span(task->tokens).subspan(held)});
    task->statistics.passes_bytes += source_.pass_bytes / static_cast<int64_t>(growing.size());
  }
  const std::span<const float> logits = model_->after(batch, kernels::Rows::one_by_one);
  const int64_t token_bytes = pages_->page_bytes() / pages_->page_size();
  const auto vocab_size = static_cast<size_t>(model_->config().vocab_size);
  parallel_for(static_cast<int64_t>(growing.size()), 1, [&](int64_t n, int64_t) {
    Growing& g = growing[n];
    const Task& task = *g.task;
    task.statistics.passes_bytes += token_bytes * task.draft.sequence->length();
    const auto of_task = logits.subspan(n * vocab_size).first(known_);
    const auto q = candidates_or_none(of_task, {task.tokens, task.prompt_size}, task.options,
                                      buffers[thread_index()], "the draft");
    // Where the options leave none, the text, if it ever comes to it, is not the draft's to end.
    if (q.empty()) return void(g.left = 0);
    const int32_t token = pick(
        q, random_number(Purpose::draft, task.options.seed, task.stream_index, task.tokens.size()));
    task.draft.proposals.push_back({token, {q.begin(), q.end()}});
    task.tokens.push_back(token);
    g.left = token == end_ ? 0 : g.left - 1;
  });
}

void Drafter::settle(Draft& draft, int64_t before, const NextTokens& next) {
  draft.length.record(next.accepted, next.rejected);
  draft.proposals.clear();
  if (!draft.sequence) return;
  const int64_t computed = before + static_cast<int64_t>(next.tokens.size()) - 1;
  draft.sequence->truncate(std::min(draft.sequence->length(), computed));
}

}  // namespace lockstep
