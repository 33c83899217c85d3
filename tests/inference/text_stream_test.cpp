#include "inference/text_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lockstep {
namespace {

using ::testing::ElementsAre;

struct Streamed {
  std::vector<std::string> pieces;
  std::string text;
  bool stopped = false;
};

Streamed stream(const std::vector<std::string>& tokens,
                const std::vector<std::string>& stops = {}) {
  Streamed result;
  TextStream text(stops, [&](std::string_view piece) { result.pieces.emplace_back(piece); });
  for (const std::string& token : tokens) {
    result.stopped = text.push(token);
    if (result.stopped) break;
  }
  text.finish();
  result.text = text.text();
  std::string joined;
  for (const std::string& piece : result.pieces) joined += piece;
  EXPECT_EQ(joined, result.text);
  return result;
}

TEST(TextStream, HandsOnEachTokenAtOnce) {
  const Streamed s = stream({"Hello", ",", "", " world"});
  EXPECT_THAT(s.pieces, ElementsAre("Hello", ",", " world"));
  EXPECT_FALSE(s.stopped);
}

TEST(TextStream, WaitsForTheWholeCharacter) {
  EXPECT_THAT(stream({"a\xf0", "\x9f", "\x99", "\x82z"}).pieces, ElementsAre("a", "🙂z"));
  EXPECT_THAT(stream({"\xc3", "\xa9", "\xe6\x9d", "\xb1"}).pieces, ElementsAre("é", "東"));
  // What never becomes whole comes at the end.
  EXPECT_THAT(stream({"a\xe6\x9d"}).pieces, ElementsAre("a", "\xe6\x9d"));
}

TEST(TextStream, PassesOnBytesThatAreNoCharacter) {
  EXPECT_THAT(stream({"\xff", "\x80", "\x80\x80\x80\x80", "a"}).pieces,
              ElementsAre("\xff", "\x80", "\x80\x80\x80\x80", "a"));
  EXPECT_THAT(stream({"\xe6", "a"}).pieces, ElementsAre("\xe6"
                                                        "a"));
}

TEST(TextStream, EndsBeforeAStopTextAcrossTokens) {
  const Streamed s = stream({"one", " t", "w", "o three", " four"}, {"two"});
  EXPECT_THAT(s.pieces, ElementsAre("one", " "));
  EXPECT_EQ(s.text, "one ");
  EXPECT_TRUE(s.stopped);
}

TEST(TextStream, GivesBackWhatOnlyBeganAStopText) {
  const Streamed s = stream({"ab", "ab", "x"}, {"abac"});
  EXPECT_THAT(s.pieces, ElementsAre("ab", "abx"));
  EXPECT_EQ(stream({"ab", "ab", "ac", "d"}, {"abac"}).text, "ab");
  EXPECT_EQ(stream({"a", "b"}, {"abc"}).text, "ab");  // finished while waiting
}

TEST(TextStream, TheStopTextThatIsCompleteFirstCounts) {
  for (const std::vector<std::string>& tokens :
       {std::vector<std::string>{"xabcdy"}, {"xab", "cdy"}, {"x", "a", "b", "c", "d", "y"}}) {
    EXPECT_EQ(stream(tokens, {"abcd", "bc"}).text, "xa");
    EXPECT_EQ(stream(tokens, {"bc", "abc"}).text, "x");  // complete together: the longer
    EXPECT_EQ(stream(tokens, {"d", "z"}).text, "xabc");
  }
}

TEST(TextStream, HoldsNoCharacterInHalfForAStopText) {
  // The stop text begins with a byte that ends another character.
  const Streamed s = stream({"é", "x"}, {"\xa9z"});
  EXPECT_THAT(s.pieces, ElementsAre("éx"));
}

// However the text is cut into tokens, the result is the same, and never shows a stop text's part.
TEST(TextStream, DoesNotDependOnTheBordersOfTokens) {
  const std::string text = "naïve 🙂 END? EN END.";
  const std::vector<std::string> stops = {"END.", "🙃"};
  for (size_t size = 1; size <= text.size(); size++) {
    for (size_t shift = 0; shift < size; shift++) {
      std::vector<std::string> tokens = {text.substr(0, shift)};
      for (size_t i = shift; i < text.size(); i += size) tokens.push_back(text.substr(i, size));
      const Streamed s = stream(tokens, stops);
      EXPECT_EQ(s.text, "naïve 🙂 END? EN ");
      EXPECT_TRUE(s.stopped);
    }
  }
}

}  // namespace
}  // namespace lockstep
