#pragma once
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/word_scanner.h"

struct pcre2_real_code_8;

namespace lockstep {

// Splits text into the pieces that byte-pair merges do not cross, as the `pre_tokenizer` of a
// tokenizer.json says.
class PreTokenizer {
 public:
  enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

  // One pre-tokenizer of the file; each splits what the one before it left.
  struct Step {
    enum class Kind { split, digits, byte_level };
    Kind kind = Kind::byte_level;
    // split: by a regular expression (Oniguruma's dialect) or by this very text
    std::string pattern = {};
    bool is_regex = true;
    Behavior behavior = Behavior::isolated;
    bool invert = false;  // what lies between matches counts as matched, and the reverse
    // digits: each digit by itself, or runs of them
    bool individual_digits = false;
    // byte_level: by GPT-2's pattern, or not at all
    bool use_regex = true;
    bool operator==(const Step&) const = default;
  };

  // Throws std::invalid_argument, with the reason, for a pattern that does not compile.
  explicit PreTokenizer(std::vector<Step> steps);

  // Calls sink(piece) for each piece, in order. Runs of bytes that are not UTF-8 are pieces; the
  // valid text between them is split as if each stretch of it stood alone.
  // Throws DataError when a pattern exceeds PCRE2's limits on this text.
  template <class Sink>
  void split(std::string_view text, Sink&& sink) const {
    split_batches(text, [&](std::span<const std::string_view> pieces) {
      for (const std::string_view piece : pieces) sink(piece);
    });
  }

  // The same by batches: sink(pieces), of at most kMaxBatch.
  template <class Sink>
  void split_batches(std::string_view text, const Sink& sink) const {
    split_bytes(
        text,
        [](const void* context, std::span<const std::string_view> pieces) {
          (*static_cast<const Sink*>(context))(pieces);
        },
        &sink);
  }
  static constexpr size_t kMaxBatch = 128;

  // False when every byte of a text comes back in some piece.
  bool drops_text() const { return drops_text_; }

 private:
  using PieceSink = void (*)(const void* context, std::span<const std::string_view> pieces);
  using Code = std::shared_ptr<const pcre2_real_code_8>;
  struct Splitter {
    std::optional<WordScanner> scanner;  // in place of the code, for a pattern that has one
    Code code;        // for text without characters that PCRE2 may be too old to know
    Code newer_code;  // for all text
    Behavior behavior;
    bool invert;
  };
  struct Span {
    size_t begin, end;
    bool matched;
  };

  void add_splitter(std::string_view pattern, bool is_regex, Behavior behavior, bool invert);
  void split_bytes(std::string_view text, PieceSink sink, const void* context) const;
  void split_valid(size_t step, bool newer, std::string_view text, PieceSink sink,
                   const void* context) const;
  void scan_valid(size_t step, bool newer, std::string_view text, PieceSink sink,
                  const void* context) const;
  static std::vector<Span> find_spans(const Splitter& splitter, bool newer, std::string_view text);

  std::vector<Splitter> splitters_;
  bool needs_code_ = false;  // not every splitter has a scanner
  bool drops_text_ = false;
};

}  // namespace lockstep
