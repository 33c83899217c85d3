#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/product_algorithms.h"

namespace lockstep {

// RUN/products.json: which algorithms the run's matrix products take on its GPUs
// (kernels/product_algorithms.h), so that the run goes on with the same ones and has the same bits.
// Of the problems that the first worker met: all of a step, and of evaluations those of its
// windows.
//
//   library, gpu    that the algorithms are of
//   algorithms      an object: by problem, the library's description in hexadecimal, or ""
//   checksum        of the three, because the library believes whatever stands in a description
class ProductRecord {
 public:
  explicit ProductRecord(const std::filesystem::path& run) : path_(run / "products.json") {}

  // For a run that goes on, before its first product: every worker takes the algorithms that the
  // first worker reads. Where the file is missing, damaged, or of another library or GPU, all
  // choose anew, and the notes for the user say so. Collective.
  std::vector<std::string> reuse(Communicator& communicator);

  // Writes what this worker has chosen so far, atomically, unless it was written before. The note,
  // once, is that the library refused some of what was read. Throws DataError.
  std::vector<std::string> write();

 private:
  std::filesystem::path path_;
  std::string written_;
  bool refusal_told_ = false;
};

// What the file holds.
std::string to_text(const kernels::ProductAlgorithms& algorithms);

}  // namespace lockstep
