// Encodes a text on one thread and prints the processor time that took; see bench/tokenizer.sh.
//
//   tokenizer_encode TOKENIZER TEXT [--ids]      --ids: the ids to stdout instead, as int32
#include <time.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "core/file.h"
#include "data/tokenizer.h"

namespace {

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const lockstep::Tokenizer tokenizer = lockstep::Tokenizer::load(argv[1]);
  const std::string text = lockstep::read_file(argv[2]);
  const double begin = thread_seconds();
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const double seconds = thread_seconds() - begin;
  if (argc > 3 && std::strcmp(argv[3], "--ids") == 0) {
    return std::fwrite(ids.data(), sizeof(int32_t), ids.size(), stdout) == ids.size() ? 0 : 1;
  }
  std::printf("{\"seconds\": %.6f, \"tokens\": %zu}\n", seconds, ids.size());
  return 0;
}
