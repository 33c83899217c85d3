#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/range.h"
#include "core/tensor.h"
#include "model/config.h"
#include "model/parameter_table.h"
#include "model/quantization.h"

// Checkpoints (docs/checkpoint_format.md). RUN/checkpoints/step-00000100/ holds index.h5 and
// shard-RRRRR-of-NNNNN.h5, some ranges of the flat buffers a worker. A checkpoint exists when its
// folder has its final name.
namespace lockstep {

// All that a checkpoint holds beside tensors.
struct CheckpointInfo {
  int64_t step = 0;
  ModelConfig model;
  std::string tokenizer_json;
  // Scalars by name (finite numbers, booleans, text): the trainer's state (updates, tokens,
  // loss_scale, ...) and the options that a resumed run must not contradict. Each becomes an
  // attribute.
  nlohmann::json trainer_state = nlohmann::json::object();
  nlohmann::json run_config = nlohmann::json::object();
  std::optional<Quantization> quantization = {};  // of a quantized model
};

// The three flat buffers, each fp32 and in the order of the ParameterTable.
enum class FlatKind { weights, exp_avg, exp_avg_sq };

// One range of the flat buffers.
struct CheckpointSlice {
  Range range;
  Tensor weights, exp_avg, exp_avg_sq;  // (range.size()) fp32 each
};

// Writes checkpoints of one run in the background, from a copy. Each worker has one. `rank` of
// `size` workers; the file system is the only thing that they share here. Rank 0 gives up on the
// others when one of them reports a failure, or when nothing has been written for `patience`.
class CheckpointWriter {
 public:
  CheckpointWriter(std::filesystem::path run_folder, int rank, int size, int keep,
                   std::chrono::milliseconds patience = std::chrono::minutes(5));
  ~CheckpointWriter();

  // Rank 0, before any worker calls save for this step: clears what a dead run left behind and
  // makes the partial folder. Waits first for a save still under way. The caller puts a barrier
  // after it.
  void prepare(int64_t step);

  // Copies this worker's slices, ascending, and returns; the rest happens in the background: this
  // worker's shard is written and flushed; rank 0 then waits for all shards, writes the index,
  // checks all, renames the folder and removes the oldest good ones beyond `keep` (0: keeps all).
  // Waits first for a save still under way. The first thing that goes wrong is thrown by the next
  // call, of any kind.
  void save(const CheckpointInfo& info, const std::vector<CheckpointSlice>& slices);

  // Waits for the save under way; on rank 0 it has its final name then. Throws DataError (disk
  // full, no permission, ...) with what went wrong, once; nothing under the final name is touched
  // then.
  void wait();
  // The same without waiting: true when none is under way.
  bool poll();
  // How long the last save took that has been waited for, from its copy to its final name on rank
  // 0; seconds.
  double last_seconds() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

// A checkpoint open for reading, verified first: sizes and checksums of all that is read.
class Checkpoint {
 public:
  // A step folder, a run folder (its newest good checkpoint; damaged ones are named in a warning),
  // or an exported model.h5. Throws DataError.
  static Checkpoint open(const std::filesystem::path& path);
  ~Checkpoint();
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;

  const std::filesystem::path& path() const;
  const CheckpointInfo& info() const;
  const ParameterTable& table() const;
  bool has_optimizer_state() const;  // an exported or imported model has none
  // A checksum of all that it holds (docs/checkpoint_format.md), wherever it lies.
  uint64_t seal() const;

  // Reads elements [begin, begin + out.size()) of a flat buffer into out, converting fp32 to out's
  // dtype. Of a quantized model, all of them must lie in one parameter that is whole.
  void read(FlatKind kind, int64_t begin, const Tensor& out) const;
  // Reads a matrix of a quantized model.
  void read(const Parameter& parameter, const kernels::QuantizedMatrix& out) const;
  // Throws DataError for a quantized model, and names what cannot work on it: "training".
  void require_whole_weights(std::string_view what) const;

 private:
  class Implementation;
  explicit Checkpoint(std::unique_ptr<Implementation> implementation);
  std::unique_ptr<Implementation> implementation_;
};

// Steps that have a folder with its final name under RUN/checkpoints, ascending.
std::vector<int64_t> list_checkpoints(const std::filesystem::path& run_folder);
std::filesystem::path checkpoint_folder(const std::filesystem::path& run_folder, int64_t step);
// The newest good checkpoint of a run, or none when there is no checkpoint at all. Damaged newer
// ones are named in warnings; throws DataError when there are some and all are damaged.
std::optional<std::filesystem::path> newest_good_checkpoint(
    const std::filesystem::path& run_folder);

// What is wrong with a checkpoint, a line a fault; empty when it is good. Reads every byte.
std::vector<std::string> verify_checkpoint(const std::filesystem::path& path);

struct TensorDifference {
  std::string name;     // "/model/layers.0.attention.qkv.weight", "/optimizer/exp_avg/...", and for
                        // values "/@step", "/run_config@learning_rate", "/tokenizer.json"
  bool equal;           // bit for bit
  double largest;       // |a - b|; NaN where one is NaN, and where there is nothing to subtract
  int64_t first_index;  // of the first element that differs, in row-major order; -1: none
  std::string note;     // "only in A", "shape (2, 3) against (4, 3)", attributes: both values
};
// Tensors and state of two checkpoints, in the order of A; only those that differ unless all is
// set. Reads block by block.
std::vector<TensorDifference> diff_checkpoints(const Checkpoint& a, const Checkpoint& b, bool all);

// The output of each of these is written under a temporary name and renamed when it is complete.
// They throw UsageError when `output` exists, DataError when it cannot be written.

// One self-contained HDF5 file with weights, configuration and tokenizer.
void export_h5(const Checkpoint& checkpoint, const std::filesystem::path& output);
// A Hugging Face folder that `transformers` loads (GPT2LMHeadModel or LlamaForCausalLM, fp32):
// config.json, model.safetensors, tokenizer.json, tokenizer_config.json, generation_config.json.
void export_hugging_face(const Checkpoint& checkpoint, const std::filesystem::path& output);
// A Hugging Face folder (GPT2LMHeadModel or LlamaForCausalLM; model.safetensors or its shards) as
// model.h5. `tokenizer_json` is the canonical content for the folder's tokenizer (data/ loads it).
// F32, F16 and BF16 widen exactly. Throws DataError, naming the file and the field or tensor, for
// what is not supported, missing, left over or of the wrong shape.
void import_hugging_face(const std::filesystem::path& folder, const std::string& tokenizer_json,
                         const std::filesystem::path& output);

// A quantized model as one HDF5 file. `matrices` holds those of the parameters that are quantized,
// in the order of the table; the others are copied.
void write_quantized(const Checkpoint& checkpoint, const Quantization& quantization,
                     const std::vector<QuantizedBuffer>& matrices,
                     const std::filesystem::path& output);

std::string hdf5_version();  // of the library in use, "1.10.8"

}  // namespace lockstep
