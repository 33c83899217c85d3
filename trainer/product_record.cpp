#include "trainer/product_record.h"

#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "comm/agreement.h"
#include "core/check.h"
#include "core/file.h"
#include "data/shard.h"

namespace lockstep {
namespace {

using kernels::ProductAlgorithms;
using nlohmann::json;

constexpr const char* kConsequence =
    "matrix products take the algorithms that cuBLASLt names now, and the bits from here on may "
    "differ from those that the run would have had";

// XXH3 of all but the checksum.
std::string checksum(const json& record) {
  std::string text;
  for (const char* field : {"library", "gpu", "algorithms"}) text += record.at(field).dump();
  return xxh3_hex(std::as_bytes(std::span(text)));
}

// Throws json::exception or DataError.
ProductAlgorithms from_text(const std::string& text) {
  const json record = json::parse(text);
  if (record.at("checksum") != checksum(record)) throw DataError("its checksum does not fit");
  return {record.at("library"), record.at("gpu"), record.at("algorithms")};
}

// Of this machine, from the file; or a note why not.
std::string usable_text(const std::filesystem::path& path, std::string& note) {
  const ProductAlgorithms here = kernels::product_algorithms();
  if (!std::filesystem::exists(path)) {
    note = fmt::format("{} is missing: {}", path.string(), kConsequence);
    return "";
  }
  try {
    const ProductAlgorithms recorded = from_text(read_file(path));
    if (recorded.library == here.library && recorded.gpu == here.gpu) return to_text(recorded);
    note = fmt::format("{} is of {} on {}, and this is {} on {}: {}", path.string(),
                       recorded.library, recorded.gpu, here.library, here.gpu, kConsequence);
  } catch (const json::exception& error) {
    note = fmt::format("{} is damaged ({}): {}", path.string(), error.what(), kConsequence);
  } catch (const DataError& error) {
    note = fmt::format("{} is damaged ({}): {}", path.string(), error.what(), kConsequence);
  }
  return "";
}

}  // namespace

std::string to_text(const ProductAlgorithms& algorithms) {
  json record = {{"library", algorithms.library},
                 {"gpu", algorithms.gpu},
                 {"algorithms", algorithms.by_problem}};
  record["checksum"] = checksum(record);
  return record.dump(1) + "\n";
}

std::vector<std::string> ProductRecord::reuse(Communicator& communicator) {
  std::string text, note;
  run_together(communicator, [&] {
    if (communicator.rank() == 0) text = usable_text(path_, note);
  });
  communicator.set_purpose("of the products' algorithms");
  communicator.broadcast(text, 0);
  if (!text.empty()) kernels::reuse_product_algorithms(from_text(text).by_problem);
  return note.empty() ? std::vector<std::string>() : std::vector{note};
}

std::vector<std::string> ProductRecord::write() {
  const ProductAlgorithms algorithms = kernels::product_algorithms();
  const std::string text = to_text(algorithms);
  if (text != written_) {
    write_file_atomically(path_, text);
    written_ = text;
  }
  if (algorithms.num_refused == 0 || std::exchange(refusal_told_, true)) return {};
  return {fmt::format("cuBLASLt refuses algorithms of {}: {}", path_.string(), kConsequence)};
}

}  // namespace lockstep
