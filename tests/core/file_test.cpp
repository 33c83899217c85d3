#include "core/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "core/check.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

class File : public testing::Test {
 protected:
  File() : folder_(fs::temp_directory_path() / fmt::format("lockstep-file-{}", getpid())) {
    fs::create_directories(folder_);
  }
  ~File() override { fs::remove_all(folder_); }
  fs::path path(const std::string& name) const { return folder_ / name; }
  void put(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
  }
  int64_t entries() const {
    return std::distance(fs::directory_iterator(folder_), fs::directory_iterator());
  }

  fs::path folder_;
};

// The message of the DataError that f throws.
template <class F>
std::string data_error(F f) {
  try {
    f();
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(File, ReadsEveryByte) {
  std::string content;
  for (int i = 0; i < 300'000; i++) content += static_cast<char>(i * 7);
  for (const std::string& want : {std::string(), std::string("\0a\n", 3), content}) {
    put("x", want);
    EXPECT_EQ(read_file(path("x")), want);
    const MappedFile mapped(path("x"));
    EXPECT_EQ(
        std::string(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size()),
        want);
  }
}

TEST_F(File, WritesTheNewContentOrLeavesTheOld) {
  write_file_atomically(path("x"), "one");
  EXPECT_EQ(read_file(path("x")), "one");
  write_file_atomically(path("x"), std::string_view("two\0", 4));
  EXPECT_EQ(read_file(path("x")), std::string("two\0", 4));
  EXPECT_EQ(entries(), 1);
}

TEST_F(File, AWriteThatFailsLeavesTheOldFileAndNoOther) {
  write_file_atomically(path("x"), "old");
  // The system refuses files above 4 KiB, as a full disk would.
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string message =
      data_error([&] { write_file_atomically(path("x"), std::string(100'000, 'n')); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_THAT(message, AllOf(HasSubstr("cannot write"), HasSubstr(path("x").string()),
                             HasSubstr("too large")));
  EXPECT_EQ(read_file(path("x")), "old");
  EXPECT_EQ(entries(), 1);
}

TEST_F(File, ErrorsNameFileAndReason) {
  const std::string missing = path("missing").string();
  const auto names_the_missing = AllOf(HasSubstr(missing), HasSubstr("No such file"));
  EXPECT_THAT(data_error([&] { read_file(missing); }), names_the_missing);
  EXPECT_THAT(data_error([&] { MappedFile file(missing); }), names_the_missing);
  EXPECT_THAT(data_error([&] { flush_to_disk(missing); }), names_the_missing);
  EXPECT_THAT(data_error([&] { write_file_atomically(path("missing/x"), ""); }),
              AllOf(HasSubstr("cannot create"), HasSubstr(missing), HasSubstr("No such file")));
  EXPECT_THAT(data_error([&] { read_file(folder_); }), HasSubstr("is a folder"));
  EXPECT_THAT(data_error([&] { MappedFile file(folder_); }), HasSubstr("is a folder"));
  put("x", "content");
  EXPECT_THAT(data_error([&] { read_file(path("x/y")); }), HasSubstr("Not a directory"));
  EXPECT_THAT(data_error([&] { write_file_atomically(folder_, "x"); }),
              AllOf(HasSubstr("cannot rename"), HasSubstr(folder_.string())));
  EXPECT_FALSE(fs::exists(folder_.string() + ".tmp"));
}

TEST_F(File, FlushesFilesAndFolders) {
  put("x", "content");
  EXPECT_NO_THROW(flush_to_disk(path("x")));
  EXPECT_NO_THROW(flush_to_disk(folder_));
}

TEST_F(File, AMappingMoves) {
  put("x", "first");
  put("y", "second");
  MappedFile x(path("x")), y(path("y"));
  const std::byte* data = y.bytes().data();
  x = std::move(y);
  EXPECT_EQ(x.bytes().data(), data);
  EXPECT_EQ(x.bytes().size(), 6u);
  const MappedFile z(std::move(x));
  EXPECT_EQ(z.bytes().data(), data);
}

}  // namespace
}  // namespace lockstep
