#include "model/kv_pages.h"

#include <algorithm>
#include <unordered_set>

#include "core/check.h"

namespace lockstep {

KvPages::KvPages(const ModelConfig& config, int64_t page_size, DType dtype, Device device)
    : page_size_(page_size),
      shape_{config.num_layers, 2, config.num_kv_heads * page_size, config.head_dim},
      dtype_(dtype),
      device_(device) {
  CHECK(page_size >= 1 && page_size % 4 == 0, "{} tokens a page", page_size);
}

std::shared_ptr<KvPages::Page> KvPages::take() {
  std::unique_ptr<Page> page;
  if (free_.empty()) {
    page = std::make_unique<Page>();
    page->memory = Buffer(dtype_, shape_, device_);
    free_.reserve(allocated() + 1);  // giving it back cannot fail
  } else {
    page = std::move(free_.back());
    free_.pop_back();
  }
  in_use_++;
  return std::shared_ptr<Page>(page.release(), [this](Page* p) {
    p->tokens.clear();
    p->next.clear();
    free_.emplace_back(p);
    in_use_--;
  });
}

void KvSequence::truncate(int64_t length) {
  CHECK(0 <= length && length <= length_, "{} of {}", length, length_);
  length_ = length;
  pages_.resize(pool_->pages_for(length));
}

void KvSequence::reserve(int64_t count, Stream& stream) {
  // Only the last page may be partly filled. What is written behind its tokens is not what others
  // may look for in it.
  if (length_ % pool_->page_size_ != 0) {
    std::shared_ptr<Page>& last = pages_[length_ / pool_->page_size_];
    if (last.use_count() > 1) {
      std::shared_ptr<Page> own = pool_->take();
      copy(own->memory.tensor(), last->memory.tensor(), stream);
      last = std::move(own);
    }
    last->tokens.clear();
    last->next.clear();
  }
  const int64_t needed = pool_->pages_for(length_ + count);
  while (num_pages() < needed) pages_.push_back(pool_->take());
}

std::shared_ptr<KvPages::Page> KvSequence::find(int64_t n, std::span<const int32_t> tokens) {
  std::vector<std::weak_ptr<Page>>& known = continuations(n);
  std::erase_if(known, [](const auto& page) { return page.expired(); });
  for (const std::weak_ptr<Page>& candidate : known) {
    std::shared_ptr<Page> page = candidate.lock();
    if (std::equal(page->tokens.begin(), page->tokens.end(), tokens.begin(), tokens.end())) {
      return page;
    }
  }
  return nullptr;
}

int64_t KvSequence::share(std::span<const int32_t> tokens) {
  CHECK(length_ == 0 && pages_.empty() && !tokens.empty());
  const auto size = static_cast<size_t>(pool_->page_size_);
  for (size_t begin = 0; begin + size < tokens.size(); begin += size) {
    std::shared_ptr<Page> page = find(num_pages(), tokens.subspan(begin, size));
    if (page == nullptr) break;
    pages_.push_back(std::move(page));
    length_ += pool_->page_size_;
  }
  return length_;
}

void KvSequence::publish(std::span<const int32_t> tokens) {
  CHECK(static_cast<int64_t>(tokens.size()) <= length_);
  const auto size = static_cast<size_t>(pool_->page_size_);
  for (size_t begin = 0; begin + size <= tokens.size(); begin += size) {
    const auto n = static_cast<int64_t>(begin / size);
    const auto of_page = tokens.subspan(begin, size);
    if (find(n, of_page) != nullptr) continue;
    pages_[n]->tokens.assign(of_page.begin(), of_page.end());
    continuations(n).push_back(pages_[n]);
  }
}

int64_t distinct_pages(std::span<const KvSequence> sequences) {
  std::unordered_set<const void*> pages;
  for (const KvSequence& sequence : sequences) {
    for (const auto& page : sequence.pages_) pages.insert(page.get());
  }
  return static_cast<int64_t>(pages.size());
}

}  // namespace lockstep
