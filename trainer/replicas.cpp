#include "trainer/replicas.h"

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "comm/agreement.h"
#include "data/shard.h"

namespace lockstep {
namespace {

constexpr size_t kDigits = 16;  // of xxh3_hex

// The sums of all tensors, one behind the other.
std::string sums_of(Transformer& model) {
  Buffer copied;
  Tensor weights = model.weights();
  if (weights.device() != Device::cpu) {
    copied = Buffer(weights.dtype(), weights.shape());
    copy(copied.tensor(), weights, model.stream());
    model.stream().synchronize();
    weights = copied.tensor();
  }
  std::string sums;
  for (const Parameter& parameter : model.table().parameters()) {
    const Tensor tensor = model.table().view(weights, parameter);
    sums += xxh3_hex(
        {static_cast<const std::byte*>(tensor.data()), static_cast<size_t>(tensor.size_bytes())});
  }
  return sums;
}

// What to say of the first tensor that is not the same everywhere; empty where all are.
std::string difference(const ParameterTable& table, const std::vector<std::string>& sums) {
  for (size_t i = 0; i < table.parameters().size(); i++) {
    std::map<std::string, std::vector<int>> workers_by_sum;
    for (size_t rank = 0; rank < sums.size(); rank++) {
      workers_by_sum[sums[rank].substr(i * kDigits, kDigits)].push_back(static_cast<int>(rank));
    }
    if (workers_by_sum.size() == 1) continue;
    // The largest group is taken to be right; of several, the one of the lowest rank.
    const auto most = std::max_element(workers_by_sum.begin(), workers_by_sum.end(),
                                       [](const auto& a, const auto& b) {
                                         return std::pair(a.second.size(), -a.second.front()) <
                                                std::pair(b.second.size(), -b.second.front());
                                       });
    std::vector<int> others;
    for (const auto& [sum, workers] : workers_by_sum) {
      if (sum != most->first) others.insert(others.end(), workers.begin(), workers.end());
    }
    std::sort(others.begin(), others.end());
    return fmt::format("{} is not on worker {} what it is on worker {}", table.parameters()[i].name,
                       fmt::join(others, ", "), fmt::join(most->second, ", "));
  }
  return "";
}

}  // namespace

void check_replicas(Transformer& model, int64_t step, Communicator& communicator) {
  if (communicator.size() == 1) return;
  communicator.set_purpose("of sums of the weights");
  const std::vector<std::string> sums = communicator.gather(sums_of(model));
  std::string found = communicator.rank() == 0 ? difference(model.table(), sums) : "";
  communicator.broadcast(found, 0);
  if (found.empty()) return;
  throw SharedError(
      ExitCode::device,
      fmt::format("after step {} the workers' weights differ: {}\n"
                  "a machine computes or remembers wrongly: take it out, and go on from the last "
                  "checkpoint before this step",
                  step, found));
}

}  // namespace lockstep
