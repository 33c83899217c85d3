#include "data/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/file.h"
#include "data/dataset.h"
#include "tests/data/temporary_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::string words(size_t count, unsigned seed = 0) {
  std::string text;
  for (size_t i = 0; i < count; i++) {
    const unsigned draw = (static_cast<unsigned>(i) + seed * 7919u) * 2654435761u >> 22;
    const char* after = draw % 13 == 0 ? ".\n" : draw % 29 == 0 ? " — " : " ";
    text += fmt::format("w{}{}", draw % 211, after);
  }
  return text;
}

std::string json_line(const std::string& text, const std::string& field = "text") {
  return json{{field, text}}.dump() + "\n";
}

std::vector<int32_t> ids(const TokenStream& stream) {
  std::vector<int32_t> all(static_cast<size_t>(stream.size()));
  stream.copy(0, stream.size(), all.data());
  return all;
}

// The texts of a split of a dataset made with the bytes tokenizer, whose end-of-text is id 256.
std::vector<std::string> documents(const Dataset& dataset, const std::string& split) {
  std::vector<std::string> texts(1);
  for (const int32_t id : ids(dataset.split(split))) {
    if (id == 256) texts.emplace_back();
    if (id < 256) texts.back() += static_cast<char>(id);
  }
  EXPECT_EQ(texts.back(), "") << "the last document is not ended";
  texts.pop_back();
  return texts;
}

template <class Failure>
std::string error_of(const PrepareConfig& config) {
  try {
    prepare(config);
  } catch (const Failure& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("another kind: ") + error.what();
  }
  return "no error";
}

class Prepare : public testing::Test {
 protected:
  TemporaryFolder folder_;

  PrepareConfig bytes(std::vector<fs::path> inputs, const std::string& output = "out") {
    PrepareConfig config;
    config.inputs = std::move(inputs);
    config.output = folder_.path() / output;
    config.tokenizer = "bytes";
    config.threads = 2;
    return config;
  }
  // Names in the folder, hidden ones too.
  std::vector<std::string> names(const fs::path& path = "") {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder_.path() / path)) {
      found.push_back(entry.path().filename().string());
    }
    std::sort(found.begin(), found.end());
    return found;
  }
};

TEST_F(Prepare, SetsTheEndOfABookAside) {
  const std::string book = words(200000);
  const auto report = prepare(bytes({folder_.write("book.txt", book)}));
  EXPECT_THAT(names("out"), ElementsAre("dataset.json", "tokenizer.json", "train-00000.bin",
                                        "validation-00000.bin"));
  const Dataset dataset = Dataset::open(folder_.path() / "out");
  const auto train = documents(dataset, "train"), validation = documents(dataset, "validation");
  ASSERT_EQ(train.size(), 1u);
  ASSERT_EQ(validation.size(), 1u);
  EXPECT_EQ(train[0] + validation[0], book);
  EXPECT_EQ(train[0].back(), '\n');
  // The rest of a line more or less: lines of this text are of 60 bytes, rarely of 600.
  EXPECT_NEAR(static_cast<double>(validation[0].size()), 0.05 * static_cast<double>(book.size()),
              1000);
  EXPECT_EQ(dataset.split("validation").bytes(), static_cast<int64_t>(validation[0].size()));
  EXPECT_EQ(report.documents, 1);
  EXPECT_EQ(report.bytes, static_cast<int64_t>(book.size()));
  EXPECT_EQ(report.train.tokens, report.train.bytes + 1);
  EXPECT_EQ(report.train.tokens, dataset.split("train").size());
  EXPECT_EQ(report.train.bytes + report.validation.bytes, report.bytes);
  EXPECT_FALSE(report.split_by_document);
}

TEST_F(Prepare, FewJsonDocumentsAreCutAsTheSameTextsInFiles) {
  std::string lines;
  std::vector<fs::path> files;
  for (unsigned i = 0; i < 9; i++) {
    const std::string text = words(500 * (i + 1), i);
    lines += json_line(text);
    files.push_back(folder_.write(fmt::format("text{}", i), text));
  }
  prepare(bytes(files, "files"));
  prepare(bytes({folder_.write("all.jsonl", lines)}, "lines"));
  for (const char* shard : {"train-00000.bin", "validation-00000.bin"}) {
    EXPECT_EQ(read_file(folder_.path() / "files" / shard),
              read_file(folder_.path() / "lines" / shard));
  }
}

TEST_F(Prepare, ManyDocumentsAreChosenByTheirContent) {
  std::string lines, reversed;
  std::vector<std::string> all;
  for (unsigned i = 0; i < 2000; i++) {
    all.push_back(fmt::format("document {} {}", i, words(3, i)));
    lines += json_line(all.back());
    reversed = json_line(all.back()) + reversed;
  }
  const auto report = prepare(bytes({folder_.write("a.jsonl", lines)}, "a"));
  EXPECT_TRUE(report.split_by_document);
  const Dataset dataset = Dataset::open(folder_.path() / "a");
  const auto train = documents(dataset, "train"), validation = documents(dataset, "validation");
  // Binomial, mean 100, standard deviation 9.7.
  EXPECT_NEAR(static_cast<double>(validation.size()), 100, 50);
  auto together = train;
  together.insert(together.end(), validation.begin(), validation.end());
  EXPECT_THAT(together, testing::UnorderedElementsAreArray(all));

  prepare(bytes({folder_.write("b.jsonl", reversed)}, "b"));
  EXPECT_THAT(documents(Dataset::open(folder_.path() / "b"), "validation"),
              testing::UnorderedElementsAreArray(validation));
  PrepareConfig other_seed = bytes({folder_.path() / "a.jsonl"}, "c");
  other_seed.seed = 1;
  prepare(other_seed);
  EXPECT_NE(documents(Dataset::open(folder_.path() / "c"), "validation"), validation);
}

TEST_F(Prepare, DropsEmptyAndDuplicateDocumentsAndCountsShortOnes) {
  const std::string long_text = words(50);
  PrepareConfig config = bytes(
      {folder_.write("a.jsonl", json_line(long_text) + json_line("") + json_line(" \n\t") +
                                    json_line("short") + json_line("short") + json_line(long_text)),
       folder_.write("same.txt", long_text), folder_.write("none.txt", "")});
  config.validation_fraction = 0;
  const auto report = prepare(config);
  const Dataset dataset = Dataset::open(config.output);
  EXPECT_THAT(documents(dataset, "train"), ElementsAre(long_text, "short"));
  EXPECT_EQ(report.documents, 8);
  EXPECT_EQ(report.empty, 3);
  EXPECT_EQ(report.duplicate, 3);
  EXPECT_EQ(report.short_documents, 1);
  EXPECT_EQ(report.train.documents, 2);
  EXPECT_EQ(report.validation.documents, 0);
  EXPECT_THROW(dataset.split("validation"), DataError);
}

TEST_F(Prepare, GivesTheSameBytesForAnyNumberOfThreads) {
  std::string lines;
  for (unsigned i = 0; i < 3000; i++) lines += json_line(words(40 + i % 60, i));
  const auto text = folder_.write("in/book.txt", words(300000)),
             more = folder_.write("in/more.jsonl", lines);
  for (const int threads : {1, 2, 5}) {
    PrepareConfig config = bytes({folder_.path() / "in"}, fmt::format("out{}", threads));
    config.tokenizer = "train";
    config.vocab_size = 400;
    config.threads = threads;
    config.max_shard_tokens = 100000;
    prepare(config);
  }
  const auto files = names("out1");
  EXPECT_GT(files.size(), 8u);
  for (const char* other : {"out2", "out5"}) {
    EXPECT_EQ(names(other), files);
    for (const std::string& file : files) {
      EXPECT_EQ(read_file(folder_.path() / "out1" / file),
                read_file(folder_.path() / other / file));
    }
  }
}

// A file longer than a block is encoded in pieces; the ids must be those of the whole.
TEST_F(Prepare, EncodesALongTextAsOneWhole) {
  const std::string book = words(400000);
  PrepareConfig config = bytes({folder_.write("book.txt", book)});
  config.tokenizer = "train";
  config.vocab_size = 420;
  config.validation_fraction = 0;
  const auto report = prepare(config);
  const Dataset dataset = Dataset::open(config.output);
  std::vector<int32_t> want = dataset.tokenizer().encode(book);
  want.push_back(dataset.tokenizer().end_of_text().value());
  EXPECT_EQ(ids(dataset.split("train")), want);
  EXPECT_EQ(report.vocab_size, 420);
  EXPECT_GT(report.train.bytes_per_token(), 1.5);
}

TEST_F(Prepare, TrainsTheTokenizerOnTrainingTextAlone) {
  // The last twentieth has words of its own, often enough to be merged if they were seen.
  std::string book;
  for (int i = 0; i < 9500; i++) book += "abc def\n";
  for (int i = 0; i < 400; i++) book += "xyzxyzxyz\n";
  PrepareConfig config = bytes({folder_.write("book.txt", book)});
  config.tokenizer = "train";
  config.vocab_size = 300;
  prepare(config);
  const Dataset dataset = Dataset::open(config.output);
  EXPECT_EQ(dataset.tokenizer().encode("abc").size(), 1u);
  EXPECT_EQ(dataset.tokenizer().encode("xyzxyzxyz").size(), 9u);
}

TEST_F(Prepare, WritesUint32ForALargeVocabularyAndOfShardsNoMoreThanAsked) {
  PrepareConfig config = bytes({folder_.write("a.txt", words(1000))});
  config.max_shard_tokens = 1000;
  prepare(config);
  const Dataset dataset = Dataset::open(config.output);
  const int64_t size = dataset.split("train").size();
  ASSERT_GT(size, 3000);
  for (int64_t shard = 0; shard * 1000 < size; shard++) {
    const auto path = config.output / fmt::format("train-{:05}.bin", shard);
    EXPECT_EQ(fs::file_size(path), 1024 + 2 * std::min<int64_t>(1000, size - shard * 1000));
  }
  // Across the borders of shards.
  const auto all = ids(dataset.split("train"));
  for (const int64_t begin : {0, 1, 998, 999, 1000, 1001}) {
    std::vector<int32_t> part(1500);
    dataset.split("train").copy(begin, 1500, part.data());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + begin)) << begin;
  }
}

TEST_F(Prepare, ReportsProgressUpToTheWhole) {
  std::vector<std::string> phases;
  int64_t last = 0, total = 0;
  PrepareConfig config = bytes({folder_.write("a.txt", words(200000))});
  config.tokenizer = "train";
  config.vocab_size = 300;
  prepare(config, [&](std::string_view phase, int64_t done, int64_t of) {
    if (phases.empty() || phases.back() != phase) phases.emplace_back(phase), last = 0;
    EXPECT_GE(done, last);
    EXPECT_LE(done, of);
    last = done;
    total = of;
  });
  EXPECT_THAT(phases, ElementsAre("scanning", "training the tokenizer", "encoding"));
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, static_cast<int64_t>(fs::file_size(folder_.path() / "a.txt")));
}

TEST_F(Prepare, RefusesUnusableInputAndLeavesNothing) {
  const auto expect = [&](const fs::path& input, const char* message) {
    const auto before = names();
    PrepareConfig config = bytes({input});
    config.tokenizer = "train";
    EXPECT_THAT(error_of<DataError>(config), HasSubstr(message));
    EXPECT_EQ(names(), before) << message;
  };
  expect(folder_.path() / "absent", "no such file or folder");
  expect(folder_.write("none.txt", ""), "holds no text");
  expect(folder_.write("blank.jsonl", "\n{\"text\": \" \"}\n"), "blank.jsonl is empty");
  expect(folder_.write("binary", std::string("PK\0\3", 4)), "not text: a NUL byte at byte 2");
  expect(folder_.write("cp1251", words(100) + std::string(200, '\xe0')), "not UTF-8 text");
  expect(folder_.write("broken.jsonl", json_line("a") + "{"), "broken.jsonl:2: broken JSON");
  expect(folder_.write("field.jsonl", json_line("a", "content")),
         "field.jsonl:1: no field \"text\"");
  expect(folder_.write("cut.gz", "\x1f\x8b\x08"), "truncated");
  expect(folder_.write("small", "x"), "too small to split");
}

TEST_F(Prepare, TakesAnyBytesAsTheyAre) {
  std::string content = words(100);
  for (int i = 0; i < 4096; i++) content += static_cast<char>(i * 7);
  const PrepareReport report = prepare(bytes({folder_.write("binary", content)}));
  EXPECT_EQ(report.train.bytes + report.validation.bytes, static_cast<int64_t>(content.size()));
  const Dataset dataset = Dataset::open(folder_.path() / "out");
  const std::string read =
      documents(dataset, "train").at(0) + documents(dataset, "validation").at(0);
  EXPECT_EQ(read, content);
}

TEST_F(Prepare, RefusesAnUnreadableFile) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  const auto path = folder_.write("secret.txt", "text");
  fs::permissions(path, fs::perms::none);
  EXPECT_THAT(error_of<DataError>(bytes({path})), HasSubstr("secret.txt: Permission denied"));
}

TEST_F(Prepare, RefusesWrongSettings) {
  const auto input = folder_.write("a.txt", words(100));
  PrepareConfig config = bytes({input});
  for (const double fraction : {-0.1, 1.0, std::nan("")}) {
    config.validation_fraction = fraction;
    EXPECT_THAT(error_of<UsageError>(config), HasSubstr("--validation-fraction"));
  }
  EXPECT_THAT(error_of<UsageError>(bytes({})), HasSubstr("--input"));
}

TEST_F(Prepare, NeverOverwrites) {
  const auto input = folder_.write("a.txt", words(1000));
  const PrepareConfig config = bytes({input});
  fs::create_directory(config.output);  // an empty folder is no loss
  prepare(config);
  const auto before = read_file(config.output / "dataset.json");
  EXPECT_THAT(error_of<UsageError>(config),
              AllOf(HasSubstr("exists already and is not overwritten"), HasSubstr("rm -r")));
  EXPECT_EQ(read_file(config.output / "dataset.json"), before);
  // Whoever names their own text is not told to remove it.
  EXPECT_THAT(error_of<UsageError>(bytes({input}, "a.txt")),
              AllOf(HasSubstr("exists already"), Not(HasSubstr("rm -r"))));
}

TEST_F(Prepare, ClearsWhatADeadRunLeftBehind) {
  folder_.write(".out.partial/train-00000.bin", "half a shard");
  prepare(bytes({folder_.write("a.txt", words(1000))}, "out/"));
  EXPECT_THAT(names(), ElementsAre("a.txt", "out"));
  EXPECT_NO_THROW(Dataset::open(folder_.path() / "out"));
}

// A limit on the size of files stands for a full disk: write fails half-way in either case.
TEST_F(Prepare, ReportsAFullDiskAndLeavesNothing) {
  const PrepareConfig config = bytes({folder_.write("a.txt", words(200000))});
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 300 << 10;
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string error = error_of<DataError>(config);
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_THAT(error, testing::AllOf(HasSubstr("cannot write"), HasSubstr("train-00000.bin"),
                                    HasSubstr("File too large")));
  EXPECT_THAT(names(), ElementsAre("a.txt"));
}

}  // namespace
}  // namespace lockstep
