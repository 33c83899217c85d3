#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "data/tokenizer_parts.h"

namespace lockstep {

// Finds added tokens in text as Hugging Face does: from left to right, the longest at each place;
// first those that are not `normalized`, then, between them, those that are.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(const std::vector<AddedToken>& tokens);

  struct Part {
    std::string_view text;
    int32_t id;  // of the token that this is; -1: text between tokens
  };
  // Parts of `text`, in order. Without `with_special`, special tokens are text (which other tokens
  // are not looked for in).
  std::vector<Part> split(std::string_view text, bool with_special) const;

  // True when split() without special tokens would look for nothing.
  bool only_special() const { return only_special_; }

 private:
  // A trie of the tokens' bytes.
  class Trie {
   public:
    Trie() { nodes_.resize(1); }
    void add(std::string_view content, const AddedToken* token);
    // The longest token at the start of `text`, or null.
    const AddedToken* longest(std::string_view text) const;
    bool empty() const { return nodes_.size() == 1; }

   private:
    struct Node {
      const AddedToken* token = nullptr;
      std::vector<std::pair<char, uint32_t>> children;
    };
    uint32_t child(uint32_t node, char byte) const;  // 0: none

    std::vector<Node> nodes_;
    bool starts_token_[256] = {};
  };

  static void split_by(const Trie& trie, std::string_view text, bool with_special,
                       std::vector<Part>& parts);

  std::vector<AddedToken> tokens_;
  Trie plain_, normalized_;
  bool only_special_ = true;
};

}  // namespace lockstep
