#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "core/check.h"

// What the tests of checkpoints share.
namespace lockstep {

namespace fs = std::filesystem;

// A folder that goes away with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "lockstep-XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }
  fs::path operator/(const fs::path& name) const { return path_ / name; }

 private:
  fs::path path_;
};

inline ModelConfig tiny_gpt2() {
  ModelConfig config;
  config.family = Family::gpt2;
  config.vocab_size = 11;
  config.context_length = 5;
  config.num_layers = 2;
  config.hidden_size = 6;
  config.num_heads = config.num_kv_heads = 2;
  config.head_dim = 3;
  config.ffn_size = 7;
  return config;
}

inline ModelConfig tiny_llama() {
  ModelConfig config;
  config.family = Family::llama;
  config.vocab_size = 13;
  config.context_length = 8;
  config.num_layers = 2;
  config.hidden_size = 8;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 2;
  config.ffn_size = 9;
  config.activation = kernels::Activation::silu;
  config.tied_embeddings = false;
  config.rope_scaling = RopeScaling{8, 1, 4, 16};
  return config;
}

inline CheckpointInfo info_of(const ModelConfig& model, int64_t step) {
  CheckpointInfo info;
  info.step = step;
  info.model = model;
  info.tokenizer_json = R"({"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"\u0120b":1}}})";
  info.trainer_state = {{"updates", step}, {"loss_scale", 65536.0}, {"tokens", 1234567890123}};
  info.run_config = {{"learning_rate", 3e-4},
                     {"seed", 18446744073709551615u},
                     {"optimizer", "adamw"},
                     {"deterministic", true}};
  return info;
}

// A value that says where it comes from: no two are alike within a test.
inline float value_at(FlatKind kind, int64_t i, int64_t step) {
  return static_cast<float>(static_cast<int>(kind) * 100000 + i) + static_cast<float>(step) / 1024;
}

struct Slice {
  std::vector<float> values[3];
  CheckpointSlice view;
};

inline Slice slice_of(int64_t begin, int64_t end, int64_t step) {
  Slice slice;
  for (int kind = 0; kind < 3; kind++) {
    for (int64_t i = begin; i < end; i++) {
      slice.values[kind].push_back(value_at(static_cast<FlatKind>(kind), i, step));
    }
  }
  const auto tensor = [&](int kind) {
    return Tensor(slice.values[kind].data(), DType::fp32, {end - begin});
  };
  slice.view = {{begin, end}, tensor(0), tensor(1), tensor(2)};
  return slice;
}

// Saves one checkpoint as bounds.size() - 1 workers, each in a thread of its own; worker i owns
// [bounds[i], bounds[i + 1]).
inline void save_as_workers(const fs::path& run, const CheckpointInfo& info,
                            const std::vector<int64_t>& bounds, int keep = 0) {
  const int size = static_cast<int>(bounds.size()) - 1;
  CheckpointWriter first(run, 0, size, keep);
  first.prepare(info.step);
  std::vector<std::thread> workers;
  for (int rank = 1; rank < size; rank++) {
    workers.emplace_back([&, rank] {
      CheckpointWriter writer(run, rank, size, keep);
      const Slice slice = slice_of(bounds[rank], bounds[rank + 1], info.step);
      writer.save(info, {slice.view});
      writer.wait();
    });
  }
  const Slice slice = slice_of(bounds[0], bounds[1], info.step);
  first.save(info, {slice.view});
  for (std::thread& worker : workers) worker.join();
  first.wait();
}

inline std::vector<float> read_floats(const Checkpoint& checkpoint, FlatKind kind, int64_t begin,
                                      int64_t end) {
  std::vector<float> values(static_cast<size_t>(end - begin));
  checkpoint.read(kind, begin, Tensor(values.data(), DType::fp32, {end - begin}));
  return values;
}

// The message of the error that `action` throws; fails the test if it throws none of this type.
template <class E = DataError>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

inline std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_bytes(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace lockstep
