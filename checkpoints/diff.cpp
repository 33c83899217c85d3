#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "checkpoints/checkpoint.h"
#include "core/check.h"

namespace lockstep {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct FlatGroup {
  FlatKind kind;
  const char* prefix;
};
constexpr FlatGroup kGroups[] = {{FlatKind::weights, "/model/"},
                                 {FlatKind::exp_avg, "/optimizer/exp_avg/"},
                                 {FlatKind::exp_avg_sq, "/optimizer/exp_avg_sq/"}};

TensorDifference note_only(std::string name, std::string note) {
  return {std::move(name), false, kNaN, -1, std::move(note)};
}

// Takes in elements [first, first + count) of both; bits decide what is equal, so that NaNs of the
// same bits are, and zeros of both signs are not.
void compare_piece(const float* a, const float* b, int64_t first, int64_t count,
                   TensorDifference& difference) {
  if (std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0) return;
  for (int64_t i = 0; i < count; i++) {
    if (std::memcmp(a + i, b + i, sizeof(float)) == 0) continue;
    if (difference.equal) difference.first_index = first + i;
    difference.equal = false;
    // Equal infinities have equal bits and are not seen here; a NaN stays once it is there.
    const double distance = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(distance <= difference.largest)) {
      difference.largest = std::isnan(difference.largest) ? kNaN : distance;
    }
  }
}

TensorDifference compare_tensor(const Checkpoint& a, const Checkpoint& b, FlatKind kind,
                                const Parameter& in_a, const Parameter& in_b, std::string name) {
  constexpr int64_t kPiece = int64_t{1} << 22;  // elements: 16 MiB of each side at a time
  TensorDifference difference{std::move(name), true, 0, -1, ""};
  const int64_t size = in_a.shape.size();
  const Buffer from_a(DType::fp32, {std::min(kPiece, size)});
  const Buffer from_b(DType::fp32, {std::min(kPiece, size)});
  for (int64_t first = 0; first < size; first += kPiece) {
    const int64_t count = std::min(kPiece, size - first);
    const Tensor piece_a = from_a.tensor().slice(0, count);
    const Tensor piece_b = from_b.tensor().slice(0, count);
    a.read(kind, in_a.offset + first, piece_a);
    b.read(kind, in_b.offset + first, piece_b);
    compare_piece(piece_a.as<float>(), piece_b.as<float>(), first, count, difference);
  }
  return difference;
}

void compare_group(const Checkpoint& a, const Checkpoint& b, const FlatGroup& group,
                   std::vector<TensorDifference>& found) {
  const bool moments = group.kind != FlatKind::weights;
  const bool a_has = !moments || a.has_optimizer_state();
  const bool b_has = !moments || b.has_optimizer_state();
  for (const Parameter& in_a : a.table().parameters()) {
    if (!a_has) break;
    const std::string name = group.prefix + in_a.name;
    const Parameter* in_b = b_has ? b.table().find(in_a.name) : nullptr;
    if (in_b == nullptr) {
      found.push_back(note_only(name, "only in A"));
    } else if (in_b->shape != in_a.shape) {
      found.push_back(note_only(name, fmt::format("shape {} against {}", in_a.shape.to_string(),
                                                  in_b->shape.to_string())));
    } else {
      found.push_back(compare_tensor(a, b, group.kind, in_a, *in_b, name));
    }
  }
  for (const Parameter& in_b : b.table().parameters()) {
    if (b_has && (!a_has || a.table().find(in_b.name) == nullptr)) {
      found.push_back(note_only(group.prefix + in_b.name, "only in B"));
    }
  }
}

// Numbers as exactly as they are stored; other values as JSON.
std::string shown(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void compare_values(const nlohmann::json& a, const nlohmann::json& b, const std::string& prefix,
                    std::vector<TensorDifference>& found) {
  for (const auto& [key, value] : a.items()) {
    const auto other = b.find(key);
    if (other == b.end()) {
      found.push_back(note_only(prefix + key, "only in A: " + shown(value)));
    } else if (value == *other) {
      found.push_back({prefix + key, true, 0, -1, ""});
    } else {
      found.push_back(note_only(prefix + key, shown(value) + " against " + shown(*other)));
    }
  }
  for (const auto& [key, value] : b.items()) {
    if (!a.contains(key)) {
      found.push_back(note_only(prefix + key, "only in B: " + shown(value)));
    }
  }
}

}  // namespace

std::vector<TensorDifference> diff_checkpoints(const Checkpoint& a, const Checkpoint& b, bool all) {
  for (const Checkpoint* checkpoint : {&a, &b}) checkpoint->require_whole_weights("a comparison");
  std::vector<TensorDifference> found;
  for (const FlatGroup& group : kGroups) compare_group(a, b, group, found);
  compare_values({{"step", a.info().step}}, {{"step", b.info().step}}, "/@", found);
  compare_values(to_json(a.info().model), to_json(b.info().model), "/model@", found);
  compare_values(a.info().trainer_state, b.info().trainer_state, "/trainer_state@", found);
  compare_values(a.info().run_config, b.info().run_config, "/run_config@", found);
  if (a.info().tokenizer_json == b.info().tokenizer_json) {
    found.push_back({"/tokenizer.json", true, 0, -1, ""});
  } else {
    found.push_back(note_only("/tokenizer.json",
                              fmt::format("{} bytes against {}", a.info().tokenizer_json.size(),
                                          b.info().tokenizer_json.size())));
  }
  if (!all) {
    std::erase_if(found, [](const TensorDifference& difference) { return difference.equal; });
  }
  return found;
}

}  // namespace lockstep
