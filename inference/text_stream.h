#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

// Puts the bytes of tokens together to text, hands on what is certain, and ends before a stop text,
// wherever the borders of tokens lie. Handed on are whole UTF-8 characters (bytes that cannot
// become one as they are), never a part of a stop text.
//
// The stop text that is complete first ends the text; of two that are complete at the same byte,
// the longer.
class TextStream {
 public:
  TextStream(std::vector<std::string> stops, std::function<void(std::string_view)> on_text);

  // True when a stop text is complete: the text ends before it, and no more is taken.
  bool push(std::string_view bytes);
  // Hands on what was held back.
  void finish();
  const std::string& text() const { return text_; }

 private:
  void hand_on(size_t end);
  size_t certain_end() const;

  const std::vector<std::string> stops_;
  const std::function<void(std::string_view)> on_text_;
  std::string text_;
  size_t handed_on_ = 0;  // bytes of text_
};

}  // namespace lockstep
