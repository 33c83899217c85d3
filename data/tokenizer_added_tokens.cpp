#include "data/tokenizer_added_tokens.h"

#include <algorithm>

#include "data/unicode.h"

namespace lockstep {
namespace {

// Bytes of white space at the start of `text`.
size_t leading_white_space(std::string_view text) {
  size_t done = 0;
  while (done < text.size()) {
    const std::string_view rest = text.substr(done);
    if (unicode::invalid_prefix(rest) > 0) break;
    const unicode::Character character = unicode::first_character(rest);
    if (!unicode::is_white_space(character.code)) break;
    done += static_cast<size_t>(character.length);
  }
  return done;
}

// Bytes of white space at the end of `text`. No white space is longer than three bytes.
size_t trailing_white_space(std::string_view text) {
  size_t done = 0;
  for (bool found = true; found;) {
    found = false;
    const std::string_view rest = text.substr(0, text.size() - done);
    for (size_t length = 1; length <= std::min<size_t>(3, rest.size()) && !found; length++) {
      const std::string_view last = rest.substr(rest.size() - length);
      found = leading_white_space(last) == length;
      if (found) done += length;
    }
  }
  return done;
}

}  // namespace

uint32_t AddedTokenFinder::Trie::child(uint32_t node, char byte) const {
  for (const auto& [label, target] : nodes_[node].children) {
    if (label == byte) return target;
  }
  return 0;
}

void AddedTokenFinder::Trie::add(std::string_view content, const AddedToken* token) {
  starts_token_[static_cast<uint8_t>(content[0])] = true;
  uint32_t node = 0;
  for (const char byte : content) {
    uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<uint32_t>(nodes_.size());
      nodes_[node].children.emplace_back(byte, next);
      nodes_.emplace_back();
    }
    node = next;
  }
  nodes_[node].token = token;
}

const AddedToken* AddedTokenFinder::Trie::longest(std::string_view text) const {
  if (!starts_token_[static_cast<uint8_t>(text[0])]) return nullptr;
  const AddedToken* found = nullptr;
  uint32_t node = 0;
  for (const char byte : text) {
    node = child(node, byte);
    if (node == 0) break;
    if (nodes_[node].token != nullptr) found = nodes_[node].token;
  }
  return found;
}

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens) : tokens_(tokens) {
  for (const AddedToken& token : tokens_) {
    (token.normalized ? normalized_ : plain_).add(token.content, &token);
    only_special_ = only_special_ && token.special;
  }
}

void AddedTokenFinder::split_by(const Trie& trie, std::string_view text, bool with_special,
                                std::vector<Part>& parts) {
  size_t done = 0, at = 0;
  while (!trie.empty() && at < text.size()) {
    const AddedToken* token = trie.longest(text.substr(at));
    if (token == nullptr) {
      at++;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;
    const bool inside_stripped = begin < done;
    if ((token->special && !with_special) || inside_stripped) continue;
    if (token->lstrip) begin -= trailing_white_space(text.substr(done, begin - done));
    if (token->rstrip) end += leading_white_space(text.substr(end));
    if (done < begin) parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({text.substr(begin, end - begin), token->id});
    done = end;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::split(std::string_view text,
                                                            bool with_special) const {
  std::vector<Part> between, parts;
  split_by(plain_, text, with_special, between);
  if (normalized_.empty()) return between;
  for (const Part& part : between) {
    if (part.id >= 0) {
      parts.push_back(part);
    } else {
      split_by(normalized_, part.text, with_special, parts);
    }
  }
  return parts;
}

}  // namespace lockstep
