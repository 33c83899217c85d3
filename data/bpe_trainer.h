#pragma once
#include <cstdint>
#include <string_view>

#include "data/pretokenizer.h"
#include "data/tokenizer.h"
#include "data/word_counts.h"

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

  // One document; not to be called from several threads at once.
  void add_text(std::string_view text) { count_words(text, words_); }

  // The same in two steps, so that several threads can count. count_words may be called from any
  // thread, with counts of its own; add_words is like add_text.
  void count_words(std::string_view text, WordCounts& counts) const;
  void add_words(const WordCounts& counts) { words_.add(counts); }

  // <|endoftext|> is id 0. The vocabulary is smaller than `vocab_size` when the texts have no more
  // pairs to merge. Throws UsageError when vocab_size is below 257 (256 bytes and <|endoftext|>).
  Tokenizer train(int64_t vocab_size);

 private:
  PreTokenizer pretokenizer_;
  WordCounts words_;
};

}  // namespace lockstep
