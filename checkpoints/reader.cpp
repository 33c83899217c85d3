#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <utility>

#include "checkpoints/checkpoint.h"
#include "checkpoints/model_file.h"
#include "checkpoints/step_folder.h"
#include "core/check.h"
#include "core/thread_pool.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// Where a run of a flat buffer stands: from element `place` on in data()[index] of a file.
struct Run {
  int64_t begin, end;  // elements of the flat buffer
  size_t file, index;
  int64_t place;
};

void convert(const Tensor& from, const Tensor& to) {
  constexpr int64_t kGrain = int64_t{1} << 18;
  const auto* source = from.as<float>();
  with_float_type(to.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* target = to.as<T>();
    parallel_for(to.size(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) target[i] = from_float<T>(source[i]);
    });
  });
}

}  // namespace

class Checkpoint::Implementation {
 public:
  // A step folder: its shards are opened when a read first needs them.
  explicit Implementation(StepFolder folder)
      : path_(folder.path()),
        info_(folder.info()),
        seal_(folder.seal()),
        table_(info_.model),
        folder_(std::move(folder)) {
    for (const Shard& shard : folder_->shards()) {
      folder_->check_size(shard);
      for (size_t kind = 0; kind < runs_.size(); kind++) {
        int64_t place = 0;
        for (const Range& range : shard.ranges) {
          runs_[kind].push_back({range.begin, range.end, files_.size(), kind, place});
          place += range.size();
        }
      }
      files_.emplace_back();
    }
    for (std::vector<Run>& runs : runs_) {
      std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) {
        return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
      });
    }
  }

  // A file with weights alone.
  explicit Implementation(SealedFile file)
      : path_(file.path()),
        info_(info_from(file)),
        seal_(file.identity().seal),
        table_(info_.model) {
    for (const auto& [parameter, first, quantized] :
         ModelLayout(table_, info_.quantization).parameters) {
      if (quantized) {
        matrices_.emplace(parameter->name, first);
      } else {
        runs_[0].push_back({parameter->offset, parameter->end(), 0, first, 0});
      }
    }
    files_.push_back(std::make_unique<SealedFile>(std::move(file)));
  }

  const fs::path& path() const { return path_; }
  const CheckpointInfo& info() const { return info_; }
  const ParameterTable& table() const { return table_; }
  bool has_optimizer_state() const { return folder_.has_value(); }
  uint64_t seal() const { return seal_; }

  void read(FlatKind kind, int64_t begin, const Tensor& out) {
    CHECK(kind == FlatKind::weights || has_optimizer_state(), "{} has no optimizer state",
          path_.string());
    CHECK(0 <= begin && begin + out.size() <= table_.size(), "elements {} to {} of {}", begin,
          begin + out.size(), table_.size());
    if (info_.quantization) check_whole(begin, begin + out.size());
    if (out.dtype() == DType::fp32 && out.device() == Device::cpu) {
      return read_floats(kind, begin, out.as<float>(), out.size());
    }
    constexpr int64_t kPiece = int64_t{1} << 23;  // elements: 32 MiB at a time
    const Buffer floats(DType::fp32, {std::min(kPiece, out.size())});
    const Buffer converted(out.dtype(), {std::min(kPiece, out.size())});
    const Tensor flat = out.reshape({out.size()});
    Stream stream(out.device());
    for (int64_t at = 0; at < out.size(); at += kPiece) {
      const int64_t count = std::min(kPiece, out.size() - at);
      const Tensor piece = floats.tensor().slice(0, count);
      read_floats(kind, begin + at, piece.as<float>(), count);
      const Tensor host = converted.tensor().slice(0, count);
      convert(piece, host);
      copy(flat.slice(at, at + count), host, stream);
      stream.synchronize();
    }
  }

  void read(const Parameter& parameter, const kernels::QuantizedMatrix& out) {
    CHECK(out.bits == info_.quantization->bits &&
          out.group_size == info_.quantization->group_size &&
          parameter.shape == Shape({out.outputs, out.inputs}));
    const size_t first = matrices_.at(parameter.name);
    const auto bytes = [](void* data, int64_t size) {
      return std::span(static_cast<std::byte*>(data), static_cast<size_t>(size));
    };
    const int64_t groups = out.outputs * out.groups();
    file(0).read(first, 0,
                 bytes(out.words, out.outputs * out.words_of_row() * int64_t{sizeof(uint32_t)}));
    file(0).read(first + 1, 0, bytes(out.scales, groups * int64_t{sizeof(float)}));
    file(0).read(first + 2, 0, bytes(out.zeros, groups));
  }

 private:
  void read_floats(FlatKind kind, int64_t begin, float* out, int64_t count) {
    const std::vector<Run>& runs = runs_[static_cast<size_t>(kind)];
    auto run = std::upper_bound(runs.begin(), runs.end(), begin,
                                [](int64_t at, const Run& r) { return at < r.end; });
    for (int64_t at = begin; at < begin + count; ++run) {
      const int64_t end = std::min(begin + count, run->end);
      const auto bytes = static_cast<size_t>(end - at) * sizeof(float);
      file(run->file).read(run->index,
                           static_cast<uint64_t>(run->place + at - run->begin) * sizeof(float),
                           {reinterpret_cast<std::byte*>(out + (at - begin)), bytes});
      at = end;
    }
  }

  // Of a quantized model: in one parameter that is not.
  void check_whole(int64_t begin, int64_t end) const {
    for (const Run& run : runs_[0]) {
      if (run.begin <= begin && end <= run.end) return;
    }
    CHECK(false, "elements {} to {} of {} are quantized", begin, end, path_.string());
  }

  const SealedFile& file(size_t i) {
    std::lock_guard lock(mutex_);
    if (!files_[i]) {
      files_[i] = std::make_unique<SealedFile>(folder_->open_shard(folder_->shards()[i]));
    }
    return *files_[i];
  }

  fs::path path_;
  CheckpointInfo info_;
  uint64_t seal_;
  ParameterTable table_;
  std::optional<StepFolder> folder_;
  std::array<std::vector<Run>, 3> runs_;    // by FlatKind, ascending
  std::map<std::string, size_t> matrices_;  // that are quantized: where their data begin
  std::mutex mutex_;                        // of files_
  std::vector<std::unique_ptr<SealedFile>> files_;
};

Checkpoint Checkpoint::open(const fs::path& path) {
  const auto step_folder = [](const fs::path& folder) {
    return Checkpoint(std::make_unique<Implementation>(StepFolder(folder)));
  };
  if (path.filename().string().starts_with(".step-")) {
    throw DataError("{} was never completed: use another checkpoint", path.string());
  }
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw DataError("there is no '{}': a run folder, a step folder or a model.h5 is needed",
                    path.string());
  }
  if (!fs::is_directory(path, error)) {
    if (path.filename() == kIndexName) return step_folder(path.parent_path());
    return Checkpoint(std::make_unique<Implementation>(open_model_file(path)));
  }
  if (fs::exists(path / "checkpoints", error)) {
    const std::optional<fs::path> newest = newest_good_checkpoint(path);
    if (!newest) throw DataError("{} holds no checkpoint yet", path.string());
    return step_folder(*newest);
  }
  if (!fs::exists(path / kIndexName, error)) {
    const bool hugging_face = fs::exists(path / "config.json", error);
    throw DataError("{} is not a checkpoint: it holds no {}{}", path.string(), kIndexName,
                    hugging_face ? "; to use this Hugging Face folder, run `lockstep checkpoint "
                                   "import` on it first"
                                 : "");
  }
  return step_folder(path);
}

Checkpoint::Checkpoint(std::unique_ptr<Implementation> implementation)
    : implementation_(std::move(implementation)) {}
Checkpoint::~Checkpoint() = default;
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;

const fs::path& Checkpoint::path() const { return implementation_->path(); }
const CheckpointInfo& Checkpoint::info() const { return implementation_->info(); }
const ParameterTable& Checkpoint::table() const { return implementation_->table(); }
bool Checkpoint::has_optimizer_state() const { return implementation_->has_optimizer_state(); }
uint64_t Checkpoint::seal() const { return implementation_->seal(); }
void Checkpoint::read(FlatKind kind, int64_t begin, const Tensor& out) const {
  implementation_->read(kind, begin, out);
}
void Checkpoint::read(const Parameter& parameter, const kernels::QuantizedMatrix& out) const {
  implementation_->read(parameter, out);
}
void Checkpoint::require_whole_weights(std::string_view what) const {
  if (!info().quantization) return;
  throw DataError(
      "{} holds quantized weights, and {} needs whole ones: use the checkpoint that they "
      "were made of",
      path().string(), what);
}

}  // namespace lockstep
