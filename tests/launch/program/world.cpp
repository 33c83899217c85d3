#include "tests/launch/program/world.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace lockstep::black_box {

namespace fs = std::filesystem;

World& World::get() {
  static World world;
  return world;
}

World::World() {
  std::string pattern = fs::temp_directory_path() / "lockstep-program-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
  folder_ = pattern;
  fs::permissions(folder_, fs::perms(0755));  // another user reads here too
}

World::~World() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

fs::path World::write(const std::string& name, const std::string& content) const {
  fs::create_directories(path(name).parent_path());
  std::ofstream(path(name), std::ios::binary) << content;
  return path(name);
}

fs::path World::copy(const fs::path& from, const std::string& name) const {
  fs::copy(from, path(name), fs::copy_options::recursive);
  return path(name);
}

fs::path World::text() {
  const fs::path file = path("text.txt");
  if (fs::exists(file)) return file;
  std::string content;
  for (int i = 0; i < 400; i++) {
    content +=
        fmt::format("The quick brown fox jumps over the lazy dog number {}.\n", i * 7919 % 1000);
  }
  return write("text.txt", content);
}

namespace {
void made(const fs::path& what, const Arguments& command) {
  const Result result = black_box::run(command);
  if (result.code != 0) {
    throw std::runtime_error(fmt::format("{} could not be made: {}", what.string(), result.err));
  }
}
}  // namespace

fs::path World::data() {
  const fs::path folder = path("data");
  if (!fs::exists(folder)) {
    made(folder, {"prepare", "--input", text(), "--output", folder, "--tokenizer", "bytes"});
  }
  return folder;
}

fs::path World::trained_data() {
  const fs::path folder = path("trained_data");
  if (!fs::exists(folder)) {
    made(folder, {"prepare", "--input", text(), "--output", folder, "--vocab-size", "270"});
  }
  return folder;
}

fs::path World::run() {
  const fs::path folder = path("run");
  if (!fs::exists(folder)) {
    made(folder, train_arguments(data(), folder, {"--steps", "40", "--checkpoint-every", "20"}));
  }
  return folder;
}

Arguments train_arguments(const fs::path& data, const fs::path& run, const Arguments& more) {
  Arguments all{"train", "--data",          data,  "--run",
                run,     "--layers",        "2",   "--heads",
                "2",     "--hidden-size",   "16",  "--context-length",
                "32",    "--batch-size",    "6",   "--virtual-workers",
                "6",     "--threads",       "1",   "--precision",
                "fp32",  "--learning-rate", "1e-2"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

void flip_a_byte(const fs::path& path, double share) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  const auto size = static_cast<double>(fs::file_size(path));
  const auto place = static_cast<std::streamoff>(size * share);
  file.seekg(place);
  const int byte = file.get();
  file.seekp(place);
  file.put(static_cast<char>(~byte));
}

std::vector<std::string> step_folders(const fs::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints")) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace lockstep::black_box
