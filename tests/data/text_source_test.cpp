#include "data/text_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <cstdlib>

#include "core/check.h"
#include "core/file.h"
#include "tests/data/temporary_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

std::string gzip(std::string_view text) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

// Prose of a given size: words, lines, and some characters of two to four bytes.
std::string prose(size_t size) {
  std::string text;
  for (unsigned i = 0; text.size() < size; i++) {
    text += (i * 2654435761u >> 28) % 3 == 0 ? "naïve " : "word" + std::to_string(i % 97) + " ";
    if (i % 11 == 0) text += "\n";
    if (i % 50 == 0) text += "— 東京 🙂.\n\n";
  }
  text.resize(size);
  return text;
}

struct Read {
  std::vector<std::string> documents;
  std::string after_cut;
  size_t blocks = 0;
};

Read read_text(const std::vector<fs::path>& paths, std::optional<InputCut> cut = {}) {
  const auto files = find_inputs(paths);
  TextReader reader(files, cut);
  Read read;
  bool begun = false;
  while (auto block = reader.next()) {
    EXPECT_EQ(block->document_begins, !begun);
    if (block->document_begins) read.documents.emplace_back();
    read.documents.back() += block->text;
    if (block->after_cut) read.after_cut += block->text;
    begun = !block->document_ends;
    read.blocks++;
  }
  EXPECT_FALSE(begun);
  return read;
}

template <class Function>
std::string error_of(Function&& function) {
  try {
    function();
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

TEST(FindInputs, WalksFoldersInOrderOfNames) {
  TemporaryFolder folder;
  for (const char* name : {"b/2.txt", "b/10.jsonl", "a.NDJSON", "c.json.gz", ".hidden/x", "b/.x"}) {
    folder.write(name, "text");
  }
  const auto last = folder.write("z.txt", "12345");
  fs::create_directory_symlink(folder.path(), folder.path() / "b/loop");
  std::vector<std::string> names;
  std::vector<bool> json;
  for (const InputFile& file : find_inputs({last, folder.path()})) {
    names.push_back(file.path.lexically_relative(folder.path()).string());
    json.push_back(file.json_lines);
  }
  EXPECT_THAT(names,
              ElementsAre("z.txt", "a.NDJSON", "b/10.jsonl", "b/2.txt", "c.json.gz", "z.txt"));
  EXPECT_THAT(json, ElementsAre(false, true, true, false, true, false));
  EXPECT_EQ(find_inputs({last})[0].size_bytes, 5);
}

TEST(FindInputs, RefusesWhatItCannotRead) {
  TemporaryFolder folder;
  fs::create_directory(folder.path() / "empty");
  EXPECT_THAT(error_of([&] { find_inputs({folder.path() / "absent"}); }),
              HasSubstr("no such file or folder"));
  EXPECT_THAT(error_of([&] { find_inputs({folder.path() / "empty"}); }), HasSubstr("no files"));
  EXPECT_THAT(error_of([&] { find_inputs({"/dev/null"}); }), HasSubstr("not a regular file"));
  fs::create_symlink(folder.path() / "absent", folder.path() / "empty/link");
  EXPECT_THAT(error_of([&] { find_inputs({folder.path() / "empty"}); }),
              HasSubstr("link to nothing"));
}

TEST(TextReader, GivesEachFileWholeAsOneDocument) {
  TemporaryFolder folder;
  // Around the sizes at which a block or the buffer is exactly full (256 and 320 KiB).
  std::vector<fs::path> paths;
  std::vector<std::string> texts;
  for (const size_t size : {0, 1, 262143, 262144, 262145, 327679, 327680, 327681, 1000000}) {
    texts.push_back(prose(size));
    paths.push_back(folder.write(std::to_string(size) + ".txt", texts.back()));
  }
  const Read read = read_text(paths);
  EXPECT_EQ(read.documents, texts);
  EXPECT_GT(read.blocks, texts.size() + 6);
}

TEST(TextReader, ReadsGzipOfOneOrMoreMembersByContent) {
  TemporaryFolder folder;
  const std::string text = prose(700000);
  const auto one = folder.write("one.gz", gzip(text));
  const auto two = folder.write("two.dz", gzip(text.substr(0, 1000)) + gzip(text.substr(1000)));
  EXPECT_THAT(read_text({one, two}).documents, ElementsAre(text, text));
}

TEST(TextReader, RefusesDamagedGzip) {
  TemporaryFolder folder;
  const std::string packed = gzip(prose(700000));
  const auto read = [&](const std::string& content) {
    const auto path = folder.write("x.txt.gz", content);
    return error_of([&] { read_text({path}); });
  };
  EXPECT_THAT(read(packed.substr(0, packed.size() / 2)), HasSubstr("x.txt.gz: the gzip data is "));
  EXPECT_THAT(read(packed.substr(0, packed.size() - 1)), HasSubstr("truncated"));
  std::string flipped = packed;
  flipped[flipped.size() - 6] ^= 1;  // of the checksum
  EXPECT_THAT(read(flipped), HasSubstr("damaged gzip data"));
  EXPECT_THAT(read("plain text"), HasSubstr("not gzip-compressed"));
}

TEST(TextReader, LeavesOutAByteOrderMark) {
  TemporaryFolder folder;
  EXPECT_THAT(read_text({folder.write("a", "\xef\xbb\xbftext"), folder.write("b", "\xef\xbb\xbf")})
                  .documents,
              ElementsAre("text", ""));
}

TEST(TextReader, CutsADocumentAtTheNextLineWhereverBlocksEnd) {
  TemporaryFolder folder;
  const std::string text = prose(1000000);
  const auto path = folder.write("book.txt", text), before = folder.write("before.txt", "first");
  for (const int64_t offset : {0, 1, 5, 200000, 262143, 262144, 262145, 500000, 999990, 999999}) {
    const Read read = read_text({before, path}, InputCut{1, offset});
    const size_t cut = validation_cut(text, static_cast<size_t>(offset));
    EXPECT_EQ(read.after_cut, text.substr(cut)) << offset;
    EXPECT_EQ(read.documents.size(), offset == 0 ? 2u : 3u);
    EXPECT_LT(cut - static_cast<size_t>(offset), 100u);
  }
}

TEST(ValidationCut, TakesTheNextLineOrElseTheNextCharacter) {
  EXPECT_EQ(validation_cut("one\ntwo\nthree", 0), 0u);
  EXPECT_EQ(validation_cut("one\ntwo\nthree", 1), 4u);
  EXPECT_EQ(validation_cut("one\ntwo\nthree", 4), 4u);
  EXPECT_EQ(validation_cut("one\ntwo\nthree", 5), 8u);
  EXPECT_EQ(validation_cut("one\ntwo\nthree", 9), 9u);
  EXPECT_EQ(validation_cut("one\n", 2), 2u);  // behind the last newline is nothing
  EXPECT_EQ(validation_cut("a東京", 2), 4u);
  EXPECT_EQ(validation_cut("\x80\x80\x80\x80\x80\x80", 1), 4u);
}

TEST(SafeCut, PrefersALineThatBeginsWithText) {
  EXPECT_EQ(safe_cut("one two\nthree four five", 16), 13u);  // in the second half: before a space
  EXPECT_EQ(safe_cut("one two three\nfour five", 16), 14u);
  EXPECT_EQ(safe_cut("one two three\n\nfour five", 20), 19u);
}

TEST(SafeCut, NeverPartsWhatAPatternMayJoin) {
  // Before or behind white space, a slash or digits, a pattern may take both sides as one.
  for (const std::string_view text :
       {"aaaaaaaa\n\nbbbb", "aaaaaaaa\n bbbb", "aaaaaaaa \nbbbb", "aaaaaaaa\n/bbbb",
        "aaaaaaaa\r\nbbbb", "aaaaaaaa\u00a0\nbbb", "aaaaaaaa\n\u3000bb"}) {
    EXPECT_EQ(safe_cut(text, 12), 12u - (text[12] == '\x80')) << text;  // only a character's border
  }
  EXPECT_EQ(safe_cut("東京東京東京", 8), 6u);
}

TEST(InvalidUtf8, CountsBytesOutsideCharacters) {
  EXPECT_EQ(invalid_utf8_bytes(""), 0);
  EXPECT_EQ(invalid_utf8_bytes("plain ascii, naïve, 東京, 🙂 and more"), 0);
  EXPECT_EQ(invalid_utf8_bytes("caf\xe9 in Latin-1"), 1);
  EXPECT_EQ(invalid_utf8_bytes("\xc0\x80"), 2);          // overlong
  EXPECT_EQ(invalid_utf8_bytes("\xed\xa0\x80"), 3);      // a surrogate
  EXPECT_EQ(invalid_utf8_bytes("\xf4\x90\x80\x80"), 4);  // beyond U+10FFFF
  EXPECT_EQ(invalid_utf8_bytes("aaaaaaaa\xe6\x9d"), 2);  // cut short
}

std::vector<std::string> read_json(const fs::path& path, const std::string& field = "text") {
  const auto files = find_inputs({path});
  TextReader reader(files);
  std::vector<std::string> documents;
  while (auto block = reader.next()) {
    EXPECT_EQ(block->first_document, static_cast<int64_t>(documents.size()));
    const auto more = json_documents(*block, field);
    EXPECT_EQ(block->documents, static_cast<int64_t>(more.size()));
    documents.insert(documents.end(), more.begin(), more.end());
  }
  return documents;
}

TEST(JsonLines, GivesTheFieldOfEachLine) {
  TemporaryFolder folder;
  const auto path = folder.write("x.jsonl",
                                 "{\"text\": \"one\\n\\u00e9\\ud83d\\ude42\", \"other\": 1}\r\n"
                                 "\n  \n"
                                 "{\"meta\": {\"text\": \"not this\"}, \"text\": \"two\"}\n"
                                 "{\"list\": [{\"text\": 3}], \"text\": \"a\\u0000b\"}\n"
                                 "{\"text\": 1, \"text\": \"the last counts\"}");
  EXPECT_THAT(read_json(path),
              ElementsAre("one\né🙂", "two", std::string("a\0b", 3), "the last counts"));
}

TEST(JsonLines, ReadsLinesLongerThanABlockAndManyBlocks) {
  TemporaryFolder folder;
  const std::string longest(900000, 'x');
  std::string content = "{\"t\": \"" + longest + "\"}\n";
  for (int i = 0; i < 30000; i++) content += "{\"t\": \"line " + std::to_string(i) + "\"}\n";
  const auto documents = read_json(folder.write("x.ndjson", content), "t");
  ASSERT_EQ(documents.size(), 30001u);
  EXPECT_EQ(documents[0], longest);
  EXPECT_EQ(documents[30000], "line 29999");
}

TEST(JsonLines, NamesTheBrokenLine) {
  TemporaryFolder folder;
  std::string good;
  for (int i = 0; i < 20000; i++) good += "{\"text\": \"line " + std::to_string(i) + "\"}\n";
  const auto read = [&](const std::string& line) {
    const auto path = folder.write("x.jsonl", good + "\n" + line + "\n" + good);
    return error_of([&] { read_json(path); });
  };
  EXPECT_THAT(read("{\"text\": \"unfinished"), HasSubstr("x.jsonl:20002: broken JSON at column "));
  EXPECT_THAT(read("{\"text\": \"a\"} {}"), HasSubstr("x.jsonl:20002: broken JSON"));
  EXPECT_THAT(read("{\"text\": \"\xff\"}"), HasSubstr("x.jsonl:20002: broken JSON"));
  EXPECT_THAT(read("[\"text\"]"), HasSubstr("x.jsonl:20002: not a JSON object"));
  EXPECT_THAT(read("{\"content\": \"a\"}"),
              HasSubstr("x.jsonl:20002: no field \"text\"\nName the field"));
  EXPECT_THAT(read("{\"text\": null}"), HasSubstr("field \"text\" is not a string"));
}

}  // namespace
}  // namespace lockstep
