#include "inference/text_stream.h"

#include <algorithm>

#include "core/check.h"

namespace lockstep {
namespace {

// Length of the UTF-8 character that a first byte announces; 1 for a byte that begins none.
size_t announced_length(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte >= 0xf0 && byte <= 0xf4  ? 4
         : byte >= 0xe0 && byte < 0xf0 ? 3
         : byte >= 0xc2 && byte < 0xe0 ? 2
                                       : 1;
}

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

// Where a character begins at the end of text[begin, end) that more bytes may complete; else end.
size_t whole_characters(std::string_view text, size_t begin, size_t end) {
  for (size_t back = 1; back <= 3 && begin + back <= end; back++) {
    const char c = text[end - back];
    if (!is_continuation(c)) return announced_length(c) > back ? end - back : end;
  }
  return end;
}

}  // namespace

TextStream::TextStream(std::vector<std::string> stops,
                       std::function<void(std::string_view)> on_text)
    : stops_(std::move(stops)), on_text_(std::move(on_text)) {
  for (const std::string& stop : stops_) CHECK(!stop.empty());
}

bool TextStream::push(std::string_view bytes) {
  for (const char byte : bytes) {
    text_ += byte;
    size_t longest = 0;
    for (const std::string& stop : stops_) {
      if (text_.ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) {
      text_.resize(text_.size() - longest);
      finish();
      return true;
    }
  }
  hand_on(certain_end());
  return false;
}

void TextStream::finish() { hand_on(text_.size()); }

void TextStream::hand_on(size_t end) {
  if (end <= handed_on_) return;
  if (on_text_) on_text_(std::string_view(text_).substr(handed_on_, end - handed_on_));
  handed_on_ = end;
}

// The text up to the longest end of it that begins a stop text, in whole characters.
size_t TextStream::certain_end() const {
  size_t held = 0;
  for (const std::string& stop : stops_) {
    const size_t longest = std::min(stop.size() - 1, text_.size() - handed_on_);
    for (size_t size = longest; size > held; size--) {
      if (text_.ends_with(std::string_view(stop).substr(0, size))) held = size;
    }
  }
  return whole_characters(text_, handed_on_, text_.size() - held);
}

}  // namespace lockstep
