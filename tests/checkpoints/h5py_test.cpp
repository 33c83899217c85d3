#include <cstdlib>

#include "tests/checkpoints/support.h"

namespace lockstep {
namespace {

// A Python that has h5py: the first on the path, or the system's; empty when there is none.
std::string python_with_h5py() {
  for (const std::string python : {"python3", "/usr/bin/python3"}) {
    if (std::system((python + " -c 'import h5py' 2>/dev/null").c_str()) == 0) return python;
  }
  return "";
}

nlohmann::json tensors_of(const ParameterTable& table, bool with_moments) {
  nlohmann::json tensors;
  const std::vector<std::string> groups{"/model/", "/optimizer/exp_avg/", "/optimizer/exp_avg_sq/"};
  for (size_t kind = 0; kind < (with_moments ? groups.size() : 1); kind++) {
    for (const Parameter& parameter : table.parameters()) {
      nlohmann::json shape;
      for (int i = 0; i < parameter.shape.rank(); i++) shape.push_back(parameter.shape[i]);
      tensors[groups[kind] + parameter.name] = {
          {"shape", shape}, {"first", parameter.offset}, {"kind", kind}};
    }
  }
  return tensors;
}

nlohmann::json expectation(const CheckpointInfo& info, const fs::path& file, bool virtual_index) {
  nlohmann::json model = to_json(info.model);
  if (model["rope_scaling"].is_object()) {
    for (const auto& [key, value] : model["rope_scaling"].items()) {
      model["rope_scaling." + key] = value;
    }
  }
  model.erase("rope_scaling");
  return {{"file", file.string()},
          {"virtual", virtual_index},
          {"step", info.step},
          {"attributes",
           {{"/", {{"step", info.step}, {"format_version", 1}}},
            {"/model", model},
            {"/trainer_state", info.trainer_state},
            {"/run_config", info.run_config}}},
          {"texts", {{"/tokenizer.json", info.tokenizer_json}}},
          {"tensors", tensors_of(ParameterTable(info.model), virtual_index)}};
}

TEST(H5py, ReadsIndexAndModelAsWholeTensors) {
  const std::string python = python_with_h5py();
  if (python.empty()) GTEST_SKIP() << "python3-h5py is not installed";
  const TemporaryFolder folder;
  std::string files;
  const auto expect = [&](const nlohmann::json& expected) {
    const fs::path path = folder / fmt::format("expected-{}.json", files.size());
    write_bytes(path, expected.dump());
    files += " " + path.string();
  };
  int runs = 0;
  for (const ModelConfig& model : {tiny_gpt2(), tiny_llama()}) {
    const int64_t size = ParameterTable(model).size();
    // Borders inside rows, tensors spread over several shards, single elements, an empty shard.
    for (const std::vector<int64_t>& bounds : std::vector<std::vector<int64_t>>{
             {0, size}, {0, 10, 11, 11, size}, {0, 20, 45, 46, size}}) {
      const fs::path run = folder / fmt::format("run-{}", runs++);
      const CheckpointInfo info = info_of(model, 100);
      save_as_workers(run, info, bounds);
      export_h5(Checkpoint::open(run), run / "model.h5");
      expect(expectation(info, run / "checkpoints/step-00000100/index.h5", true));
      expect(expectation(info, run / "model.h5", false));
    }
  }
  // From a working directory that is not the files', as a user would.
  const std::string command = fmt::format("cd / && {} {}{} > {} 2>&1", python,
                                          LOCKSTEP_GOLDEN "/checkpoints/read_with_h5py.py", files,
                                          (folder / "log").string());
  EXPECT_EQ(std::system(command.c_str()), 0) << bytes_of(folder / "log");
}

}  // namespace
}  // namespace lockstep
