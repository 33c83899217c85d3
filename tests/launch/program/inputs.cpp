#include <unistd.h>
#include <zlib.h>

#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

World& world = World::get();

std::string gzip(const std::string& content) {
  const fs::path path = world.path("packed.gz");
  const gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, content.data(), static_cast<unsigned>(content.size()));
  gzclose(file);
  return read_text(path);
}

struct Prepare : testing::Test {
  static Result prepare(const fs::path& input, const Arguments& more = {}) {
    Arguments arguments{"prepare", "--input", input, "--output", output()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  static void expect_refused(const fs::path& input, const std::vector<std::string>& parts) {
    expect_error(prepare(input), 3, parts);
    EXPECT_TRUE(fs::is_empty(output().parent_path())) << "something is left of it";
  }
  static fs::path output() { return world.path("prepared/data"); }
  void SetUp() override { fs::create_directories(output().parent_path()); }
  void TearDown() override { fs::remove_all(output().parent_path()); }
};

TEST_F(Prepare, UnusableInput) {
  expect_refused(world.path("nowhere"), {"no such file or folder", "nowhere"});
  expect_refused(world.write("empty.txt", ""), {"holds no text", "empty.txt"});
  expect_refused(world.write("blank.txt", " \n\n\t\n"), {"holds no text", "blank.txt"});
  fs::create_directories(world.path("hollow/folder"));
  expect_refused(world.path("hollow"), {"no files in folder", "hollow"});
  expect_refused("/dev/zero", {"/dev/zero is not a regular file"});
}

TEST_F(Prepare, UnreadableInput) {
  const fs::path secret = world.write("secret.txt", "text");
  fs::permissions(secret, fs::perms::none);
  if (::geteuid() != 0) return expect_refused(secret, {"secret.txt", "Permission denied"});
  const Options nobody{.as_nobody = true};
  if (run({"--version"}, nobody).code != 0) GTEST_SKIP() << "another user cannot run the program";
  fs::permissions(output().parent_path(), fs::perms::all);
  expect_error(run({"prepare", "--input", secret, "--output", output()}, nobody), 3,
               {"secret.txt", "Permission denied"});
}

TEST_F(Prepare, JsonLines) {
  const std::string good = "{\"text\": \"hello there\"}\n";
  expect_refused(world.write("broken.jsonl", good + "\n{\"text\": \"bro\n"),
                 {"broken.jsonl:3: broken JSON", "one JSON object"});
  expect_refused(world.write("other.jsonl", good + good + "{\"txt\": \"a\"}\n"),
                 {"other.jsonl:3: no field \"text\"", "--field"});
  expect_refused(world.write("number.jsonl", good + "{\"text\": 5}\n"),
                 {"number.jsonl:2: field \"text\" is not a string"});
  expect_refused(world.write("list.jsonl", "[\"text\"]\n"), {"list.jsonl:1: not a JSON object"});
  expect_refused(world.write("bad.jsonl.gz", gzip(good + "{\"text\"")),
                 {"bad.jsonl.gz:2: broken JSON"});
  std::string documents;
  for (const std::string& line : lines_of(read_text(world.text()))) {
    documents += nlohmann::json{{"body", line}}.dump() + "\n";
  }
  const Result result = prepare(world.write("good.jsonl", documents), {"--field", "body"});
  EXPECT_EQ(result.code, 0) << result.err;
}

TEST_F(Prepare, Gzip) {
  const std::string packed = gzip(read_text(world.text()));
  for (const size_t size : {size_t{5}, packed.size() / 2, packed.size() - 1}) {
    expect_refused(world.write("cut.txt.gz", packed.substr(0, size)), {"cut.txt.gz", "truncated"});
  }
  std::string damaged = packed;
  damaged[damaged.size() / 2] ^= 0x55;
  expect_refused(world.write("damaged.txt.gz", damaged), {"damaged.txt.gz"});
  EXPECT_EQ(prepare(world.write("whole.txt.gz", packed), {"--tokenizer", "bytes"}).code, 0);
  EXPECT_EQ(read_text(output() / "train-00000.bin"), read_text(world.data() / "train-00000.bin"));
}

TEST_F(Prepare, BinaryInputIsForTheTokenizerOfBytes) {
  std::string binary = read_text(world.text());
  for (int i = 0; i < 2000; i++) binary += static_cast<char>(i * 7);
  const fs::path path = world.write("binary", binary);
  expect_refused(path, {"binary is not text: a NUL byte at byte", "--tokenizer bytes"});
  expect_refused(world.write("latin", read_text(world.text()) + std::string(5000, '\xe4')),
                 {"latin is not UTF-8 text", "iconv", "--tokenizer bytes"});
  const Result result = prepare(path, {"--tokenizer", "bytes"});
  EXPECT_EQ(result.code, 0) << result.err;
}

TEST_F(Prepare, OutputAndTokenizer) {
  expect_error(run({"prepare", "--input", world.text(), "--output", world.data()}), 2,
               {"exists already and is not overwritten", "--output"});
  expect_error(run({"prepare", "--input", world.text(), "--output", world.text() / "below"}), 3,
               {"cannot create", "Not a directory"});
  expect_error(prepare(world.text(), {"--tokenizer", "byte"}), 3,
               {"--tokenizer byte: neither train nor bytes"});
  expect_error(prepare(world.text(), {"--tokenizer", world.text()}), 3, {"text.txt: not JSON"});
  expect_error(prepare(world.write("x.txt", "x"), {"--tokenizer", "bytes"}), 3,
               {"too small to split", "--validation-fraction 0"});
  // A dataset folder serves as a tokenizer: the same text gives the same tokens.
  const Result again = prepare(world.text(), {"--tokenizer", world.trained_data()});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(read_text(output() / "train-00000.bin"),
            read_text(world.trained_data() / "train-00000.bin"));
  EXPECT_THAT(again.out, HasSubstr("bytes a token"));
}

// Damaged datasets.
struct Data : testing::Test {
  fs::path copy() {
    fs::remove_all(world.path("damaged"));
    return world.copy(world.data(), "damaged");
  }
  static Result train(const fs::path& data, const Options& options = {}) {
    fs::remove_all(world.path("new_run"));
    return run(train_arguments(data, world.path("new_run"), {"--steps", "40"}), options);
  }
};

TEST_F(Data, FilesThatAreNotWhole) {
  expect_error(train(world.path("nowhere")), 3, {"no dataset folder", "nowhere", "prepare"});
  expect_error(train(world.text().parent_path()), 3, {"is not a dataset: it has no dataset.json"});
  expect_error(train(world.text()), 3, {"text.txt is a file", "--output DATASET"});

  fs::path data = copy();
  fs::resize_file(data / "train-00000.bin", fs::file_size(data / "train-00000.bin") - 10);
  expect_error(train(data), 3, {"train-00000.bin is truncated", "prepare the text again"});
  expect_error(train(data, {.workers = 2}), 3, {"train-00000.bin is truncated"});
  fs::resize_file(data / "train-00000.bin", 100);
  expect_error(train(data), 3, {"train-00000.bin is truncated: 100 bytes"});

  data = copy();
  fs::remove(data / "validation-00000.bin");
  expect_error(train(data), 3, {"validation-00000.bin", "No such file"});

  data = copy();
  world.write("damaged/dataset.json", read_text(data / "dataset.json").substr(0, 100));
  expect_error(train(data), 3, {"dataset.json is not valid JSON"});

  data = copy();
  world.write("damaged/tokenizer.json", read_text(world.trained_data() / "tokenizer.json"));
  expect_error(train(data), 3, {"tokenizer.json is not the tokenizer"});
}

TEST_F(Data, WrongMagic) {
  const fs::path data = copy();
  std::string shard = read_text(data / "train-00000.bin");
  shard.replace(0, 4, "RIFF");
  world.write("damaged/train-00000.bin", shard);
  expect_error(train(data), 3, {"train-00000.bin is not a shard", "magic"});
}

TEST_F(Data, TokenIdBeyondTheVocabulary) {
  const fs::path data = copy();
  for (const char* name : {"train-00000.bin", "validation-00000.bin"}) {
    std::string shard = read_text(data / name);
    for (size_t i = 1024; i + 1 < shard.size(); i += 2) shard.replace(i, 2, "\x01\x01");  // 257
    world.write(std::string("damaged/") + name, shard);
  }
  expect_error(train(data), 3, {"train-00000.bin holds token id 257", "the vocabulary has 257"});
  const Arguments evaluate{"evaluate", "--checkpoint", world.run(), "--data", data};
  expect_error(run(evaluate), 3, {"validation-00000.bin holds token id 257"});
  const Result two = run(evaluate, {.workers = 2});
  EXPECT_EQ(two.code, 3);
  EXPECT_THAT(two.err, HasSubstr("validation-00000.bin holds token id 257"));
}

TEST_F(Data, OfAnotherTokenizerThanTheModel) {
  const fs::path other = world.trained_data();
  const std::string what = "was prepared with another tokenizer";
  for (const int workers : {0, 2}) {
    expect_error(
        run({"evaluate", "--checkpoint", world.run(), "--data", other}, {.workers = workers}), 3,
        {what, "--tokenizer MODEL"});
  }
  expect_error(run({"train", "--data", other, "--run", world.path("new_run"), "--initialize-from",
                    world.run()}),
               3, {what});
  const fs::path resumed = world.copy(world.run(), "resumed");
  expect_error(run({"train", "--data", other, "--run", resumed}), 3, {what});
}

TEST_F(Data, TooShortOrWithoutTheSplit) {
  expect_error(run({"train", "--data", world.data(), "--run", world.path("new_run"),
                    "--context-length", "30000"}),
               3, {"training split has", "--context-length 30000 needs 30001"});
  expect_error(
      run({"evaluate", "--checkpoint", world.run(), "--data", world.data(), "--split", "test"}), 3,
      {"no split \"test\"", "train, validation"});
}

TEST(Doctor, ARunFolderThatCannotBeMade) {
  const fs::path file = world.write("no_folder", "");
  for (const fs::path& run_folder : {file, file / "run"}) {
    const Result result = run({"doctor", "--run", run_folder});
    EXPECT_EQ(result.code, 4);
    EXPECT_THAT(result.out, HasSubstr(file.string() + " is no folder"));
  }
}

}  // namespace
}  // namespace lockstep::black_box
