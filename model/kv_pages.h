#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/device.h"
#include "core/range.h"
#include "core/tensor.h"
#include "model/config.h"

// Keys and values of sequences that grow, in pages (kernels/attention.h), so that memory follows
// the tokens that exist, and sequences with the same beginning hold the same pages (Kwon et al.,
// "PagedAttention", 2023).
namespace lockstep {

class KvSequence;

// Pages of one model: memory is allocated when it is first needed, and kept for the next that needs
// it, until release_free(). Must outlive its sequences. Not for several threads at once, nor are
// sequences.
class KvPages {
 public:
  // page_size: tokens a page, a multiple of 4. A GPU's kernels read sequences of one page only.
  KvPages(const ModelConfig& config, int64_t page_size, DType dtype, Device device = Device::cpu);
  KvPages(const KvPages&) = delete;
  KvPages& operator=(const KvPages&) = delete;

  int64_t page_size() const { return page_size_; }
  int64_t page_bytes() const { return shape_.size() * size_bytes(dtype_); }
  static int64_t bytes_a_token(const ModelConfig& config, DType dtype) {
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * size_bytes(dtype);
  }
  int64_t pages_for(int64_t tokens) const { return pieces(tokens, page_size_); }
  int64_t in_use() const { return in_use_; }  // that sequences hold, each counted once
  int64_t allocated() const { return in_use_ + static_cast<int64_t>(free_.size()); }
  void release_free() { free_.clear(); }  // memory of pages that no sequence holds

 private:
  friend class KvSequence;
  // What follows a page, by the tokens of the next: sequences that begin alike find it there. Pages
  // live as long as a sequence holds them.
  struct Page {
    Buffer memory;                // (L, 2, K * page_size, D)
    std::vector<int32_t> tokens;  // what it holds for others to find; else empty
    std::vector<std::weak_ptr<Page>> next;
  };
  std::shared_ptr<Page> take();

  const int64_t page_size_;
  const Shape shape_;
  const DType dtype_;
  const Device device_;
  int64_t in_use_ = 0;
  std::vector<std::unique_ptr<Page>> free_;
  std::vector<std::weak_ptr<Page>> first_;  // pages that sequences begin with
};

// The keys (after RoPE) and values of a sequence's tokens so far. A copy holds the same pages; who
// writes into one that others hold too takes a copy of it first.
class KvSequence {
 public:
  explicit KvSequence(KvPages& pool) : pool_(&pool) {}

  int64_t length() const { return length_; }  // tokens held
  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  // Forgets all but the first `length` tokens; at most length().
  void truncate(int64_t length);

  // Takes over the whole pages that others hold and have published of these tokens' beginning, the
  // last token excepted: something is left to compute. Only while it is empty. Returns length().
  int64_t share(std::span<const int32_t> tokens);
  // Lets others share the whole pages of its first tokens, which are these. Sequences that share
  // have the same bits as without if all of these went in_tiles (kernels/matmul.h).
  void publish(std::span<const int32_t> tokens);

 private:
  friend class Decoder;
  friend int64_t distinct_pages(std::span<const KvSequence> sequences);
  using Page = KvPages::Page;
  // Room for `count` tokens more, in pages that are written by it alone.
  void reserve(int64_t count, Stream& stream);
  // The continuation of the pages before page n that holds these tokens, or none.
  std::vector<std::weak_ptr<Page>>& continuations(int64_t n) {
    return n == 0 ? pool_->first_ : pages_[n - 1]->next;
  }
  std::shared_ptr<Page> find(int64_t n, std::span<const int32_t> tokens);

  KvPages* pool_;
  std::vector<std::shared_ptr<Page>> pages_;
  int64_t length_ = 0;
};

// Pages that some of these hold, each counted once.
int64_t distinct_pages(std::span<const KvSequence> sequences);

}  // namespace lockstep
