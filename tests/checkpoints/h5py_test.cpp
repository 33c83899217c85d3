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

nlohmann::json expectation(const CheckpointInfo& info, bool with_moments) {
  nlohmann::json model = to_json(info.model);
  if (model["rope_scaling"].is_object()) {
    for (const auto& [key, value] : model["rope_scaling"].items()) {
      model["rope_scaling." + key] = value;
    }
  }
  model.erase("rope_scaling");
  return {{"step", info.step},
          {"attributes",
           {{"/", {{"step", info.step}, {"format_version", 1}}},
            {"/model", model},
            {"/trainer_state", info.trainer_state},
            {"/run_config", info.run_config}}},
          {"texts", {{"/tokenizer.json", info.tokenizer_json}}},
          {"tensors", tensors_of(ParameterTable(info.model), with_moments)}};
}

// From a working directory that is not the file's, as a user would.
void expect_h5py_agrees(const std::string& kind, const fs::path& file,
                        const nlohmann::json& expected) {
  const TemporaryFolder elsewhere;
  write_bytes(elsewhere / "expected.json", expected.dump());
  const std::string script = LOCKSTEP_GOLDEN "/checkpoints/read_with_h5py.py";
  const std::string command =
      fmt::format("cd {} && {} {} {} {} expected.json > log 2>&1", elsewhere.path().string(),
                  python_with_h5py(), script, kind, file.string());
  EXPECT_EQ(std::system(command.c_str()), 0) << bytes_of(elsewhere / "log");
}

TEST(H5py, ReadsTheIndexAsWholeTensors) {
  if (python_with_h5py().empty()) GTEST_SKIP() << "python3-h5py is not installed";
  for (const ModelConfig& model : {tiny_gpt2(), tiny_llama()}) {
    const int64_t size = ParameterTable(model).size();
    // Borders inside rows, tensors spread over several shards, single elements, an empty shard.
    for (const std::vector<int64_t>& bounds : std::vector<std::vector<int64_t>>{
             {0, size}, {0, 10, 11, 11, size}, {0, 20, 45, 46, size}}) {
      const TemporaryFolder run;
      const CheckpointInfo info = info_of(model, 100);
      save_as_workers(run.path(), info, bounds);
      expect_h5py_agrees("index", run / "checkpoints/step-00000100/index.h5",
                         expectation(info, true));
    }
  }
}

}  // namespace
}  // namespace lockstep
