#include "launch/completion_file.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <thread>
#include <utility>

#include "core/check.h"
#include "core/file.h"
#include "data/shard.h"
#include "launch/time_limit.h"

namespace lockstep::launch {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

std::string beginning(size_t index) { return fmt::format("{{\"index\":{},\"completion\":", index); }

// The end of a line of the output.
std::string ending(const Work& work) { return fmt::format(",\"work\":\"{}\"}}", work.key()); }

std::string header_of(const Work& work) {
  ordered_json values = ordered_json::object();
  for (const auto& [name, value] : work.values) values[name] = value;
  const ordered_json header = {{"checkpoint_path", work.checkpoint.string()}, {"work", values}};
  return header.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

std::string difference(const std::string& name, const ordered_json& then, const ordered_json& now) {
  const auto value = [&](const ordered_json& header) {
    const ordered_json& work = header.at("work");
    if (name == "checkpoint") return header.at("checkpoint_path").get<std::string>();
    return work.contains(name) ? work.at(name).get<std::string>() : "not given";
  };
  if (value(then) == value(now)) return fmt::format("{} {} is another one", name, value(now));
  return fmt::format("{} was {} and is {} now", name, value(then), value(now));
}

}  // namespace

std::string Work::key() const {
  std::string all;
  for (const auto& [name, value] : values) all += name + '\0' + value + '\0';
  return xxh3_hex(std::as_bytes(std::span(all)));
}

CompletionFile::CompletionFile(fs::path output, Work work, size_t count)
    : output_(std::move(output)),
      journal_(output_.string() + ".partial"),
      work_(std::move(work)),
      lease_(this_process(slurm_job())),
      places_(count) {}

std::unique_ptr<CompletionFile> CompletionFile::open(const fs::path& output, const Work& work,
                                                     size_t count) {
  if (fs::is_directory(output)) throw UsageError("{} is a folder: name a file", output.string());
  if (const fs::path folder = output.parent_path(); !folder.empty() && !fs::is_directory(folder)) {
    throw UsageError("there is no folder {} for {}: make it, or choose another --output",
                     folder.string(), output.filename().string());
  }
  std::unique_ptr<CompletionFile> file(new CompletionFile(output, work, count));
  file->take_lease();
  file->open_journal();
  file->read_journal();
  if (!fs::exists(output)) return file;
  if (!file->is_output_of_work()) {
    throw UsageError(
        "{} is there already, and holds something else than these prompts, options, checkpoint and "
        "draft give\nchoose another --output",
        output.string());
  }
  file->whole_ = true;
  fs::remove(file->journal_);  // which may be whole, too, where the program ended just then
  return file;
}

CompletionFile::~CompletionFile() {
  if (descriptor_ < 0) return;
  if (size_ == 0 && !lease_.lost()) ::unlink(journal_.c_str());
  ::close(descriptor_);
}

// Another machine's may have to be watched for a while.
void CompletionFile::take_lease() {
  const Leased leased{journal_.string() + ".lease", "writing", output_, "--output"};
  for (bool told = false; !lease_.try_take(leased, [] {});) {
    if (!std::exchange(told, true)) {
      spdlog::info("{} was left locked by another machine: watching for a sign of life for {} s",
                   output_.string(), RunLease::kStale.count());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
  if (!lease_.taken_over_from().empty()) {
    spdlog::info("{} was held by {}, which is gone: taking over", output_.string(),
                 lease_.taken_over_from());
  }
}

void CompletionFile::open_journal() {
  descriptor_ = ::open(journal_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ >= 0) return;
  throw DataError("cannot write {}: {}", journal_.string(), std::strerror(errno));
}

void CompletionFile::read_journal() {
  const std::string content = read_file(journal_);
  const size_t header = content.find('\n');
  if (header == std::string::npos && header_of(work_).starts_with(content)) {
    append("");  // new, or its first line was not finished
    return;
  }
  size_ = content.size();
  check_work(content.substr(0, header));
  size_ = header + 1;
  for (size_t end; (end = content.find('\n', size_)) != std::string::npos;) {
    const auto index = read_line(content.substr(size_, end - size_), size_);
    if (!index) break;
    num_done_++;
    size_ = end + 1;
  }
  append("");
}

void CompletionFile::check_work(const std::string& header) const {
  const ordered_json then = ordered_json::parse(header, nullptr, false);
  const ordered_json now = ordered_json::parse(header_of(work_));
  if (!then.is_object() || !then.contains("work") || !then.contains("checkpoint_path")) {
    throw UsageError("{} is not a journal of generate; remove it, or choose another --output",
                     journal_.string());
  }
  ordered_json names = now.at("work");
  names.update(then.at("work"));
  std::string differences;
  for (const auto& [name, value] : names.items()) {
    if (then.at("work").value(name, ordered_json()) == now.at("work").value(name, ordered_json())) {
      continue;
    }
    differences += (differences.empty() ? "" : ", ") + difference(name, then, now);
  }
  if (differences.empty()) return;
  throw UsageError(
      "{} was begun with other options: {}\n"
      "go on with those, or remove it or choose another --output to start anew",
      journal_.string(), differences);
}

// The completion that a line of the journal holds; none when it is not whole.
std::optional<size_t> CompletionFile::read_line(const std::string& line, size_t begin) {
  const ordered_json object = ordered_json::parse(line, nullptr, false);
  if (!object.is_object() || !object.contains("index") ||
      !object.at("index").is_number_unsigned()) {
    return std::nullopt;
  }
  const auto index = object.at("index").get<size_t>();
  const std::string before = beginning(index);
  if (index >= places_.size() || places_[index] || !line.starts_with(before)) return std::nullopt;
  places_[index] = {begin + before.size(), line.size() - before.size() - 1};
  return index;
}

bool CompletionFile::is_output_of_work() const {
  if (!fs::is_regular_file(output_)) return false;
  const std::string content = read_file(output_), end = ending(work_);
  size_t lines = 0;
  for (size_t at = 0, next; (next = content.find('\n', at)) != std::string::npos; at = next + 1) {
    if (!std::string_view(content).substr(at, next - at).ends_with(end)) return false;
    lines++;
  }
  return lines == places_.size() && content.ends_with('\n');
}

// Who was held up for long may have lost the lease, and the journal, without having been told yet.
void CompletionFile::check_ours() const {
  lease_.check();
  struct stat status {};
  if (::fstat(descriptor_, &status) == 0 && status.st_nlink > 0 &&
      static_cast<size_t>(status.st_size) == size_) {
    return;
  }
  throw DataError("{} was changed by another program; see that none writes it, and start again",
                  journal_.string());
}

void CompletionFile::add(size_t index, const std::string& completion) {
  check_ours();
  const std::string header = size_ == 0 ? header_of(work_) : "", before = beginning(index);
  const Place place{size_ + header.size() + before.size(), completion.size()};
  append(header + before + completion + "}\n");
  places_[index] = place;
  num_done_++;
}

// Behind what is known to be whole; what stands there goes.
void CompletionFile::append(const std::string& text) {
  bool good = ::ftruncate(descriptor_, static_cast<off_t>(size_)) == 0;
  for (std::string_view rest = text; good && !rest.empty();) {
    const ssize_t n = ::write(descriptor_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    good = n >= 0;
    if (good) rest.remove_prefix(static_cast<size_t>(n));
  }
  if (!good) {
    const int reason = errno;
    [[maybe_unused]] const int cut = ::ftruncate(descriptor_, static_cast<off_t>(size_));
    throw DataError("cannot write {}: {}\nwhat is done is kept: start the same command again",
                    journal_.string(), std::strerror(reason));
  }
  size_ += text.size();
}

void CompletionFile::finish() {
  CHECK(all_done());
  check_ours();
  std::string content;
  {
    const std::string journal = read_file(journal_);
    content.reserve(journal.size());
    for (const std::optional<Place>& place : places_) {
      content += std::string_view(journal).substr(place->begin, place->size - 1);
      content += ending(work_) + "\n";
    }
  }
  write_file_atomically(output_, content);
  fs::remove(journal_);
}

}  // namespace lockstep::launch
