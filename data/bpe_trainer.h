#pragma once
#include <cstdint>
#include <memory>
#include <string_view>

#include "data/tokenizer.h"

namespace lockstep {

// Trains a byte-level BPE tokenizer: again and again, the adjacent pair of tokens that occurs most
// often becomes a token (Sennrich et al., 2016). Texts are split into words by GPT-2's pattern, and
// pairs do not cross words. Merges, tie-breaking (the pair with smaller ids first) and the order of
// the vocabulary are those of Hugging Face's `BpeTrainer` with the byte alphabet.
//
// Memory grows with the distinct words, not with the text: about 100 bytes a word.
class BpeTrainer {
 public:
  BpeTrainer();
  ~BpeTrainer();
  BpeTrainer(BpeTrainer&&) noexcept;
  BpeTrainer& operator=(BpeTrainer&&) noexcept;

  // One document; not to be called from several threads at once.
  void add_text(std::string_view text);

  // <|endoftext|> is id 0. The vocabulary is smaller than `vocab_size` when the texts have no more
  // pairs to merge. Throws UsageError when vocab_size is below 257 (256 bytes and <|endoftext|>).
  Tokenizer train(int64_t vocab_size);

 private:
  struct Words;
  std::unique_ptr<Words> words_;
};

}  // namespace lockstep
