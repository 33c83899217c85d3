#pragma once
#include <string>
#include <vector>

namespace lockstep {

// A word of a line of progress.
struct Word {
  std::string text;
  int rank;  // where not all fit, the highest goes first
};

std::string joined(const std::vector<Word>& words);
// Behind a bar "[#####-----]" of which this share is full, within `width` columns: first the bar
// shrinks, then words go.
std::string bar_line(double share, std::vector<Word> words, int width);
// "4:10", "3:04:10"
std::string duration_text(double seconds);

// Progress on stderr, or nothing: on a terminal (also through mpirun, which hands stderr on) a line
// that is drawn over, elsewhere only lines that stay.
class LiveLine {
 public:
  explicit LiveLine(bool shown);
  ~LiveLine();
  LiveLine(const LiveLine&) = delete;
  LiveLine& operator=(const LiveLine&) = delete;

  bool on_terminal() const { return terminal_ >= 0; }
  int width() const;                   // of the terminal, columns
  void draw(const std::string& line);  // on a terminal
  // A line that stays, above the live one.
  void note(const std::string& text);

 private:
  void clear();

  bool shown_;
  int terminal_ = -1;  // a descriptor to ask for the width; -1: not a terminal
  bool drawn_ = false;
};

}  // namespace lockstep
