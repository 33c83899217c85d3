#include "checkpoints/hugging_face.h"

#include <cmath>

#include "checkpoints/safetensors.h"
#include "core/file.h"
#include "model/decoder.h"
#include "tests/checkpoints/support.h"

namespace lockstep {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

const fs::path kGolden = fs::path(LOCKSTEP_GOLDEN) / "checkpoints";
constexpr int64_t kTokens = 12;  // as make.py

std::string tokenizer_json() { return bytes_of(kGolden / "gpt2/tokenizer.json"); }

std::vector<float> logits_of(const Checkpoint& checkpoint) {
  const ModelConfig& model = checkpoint.info().model;
  std::vector<float> weights =
      read_floats(checkpoint, FlatKind::weights, 0, checkpoint.table().size());
  Decoder decoder(model, Tensor(weights.data(), DType::fp32, {checkpoint.table().size()}));
  KvPages pages(model, kTokens, DType::fp32);
  KvSequence sequence(pages);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < kTokens; i++) ids.push_back((3 + 7 * i) % 260);
  const Buffer hidden(DType::fp32, {kTokens, model.hidden_size});
  std::vector<float> logits(static_cast<size_t>(kTokens * model.vocab_size));
  const NewTokens all{&sequence, ids, kTokens};
  decoder.forward(std::span(&all, 1), kernels::Rows::in_tiles, hidden.tensor());
  decoder.logits(Tensor(logits.data(), DType::fp32, {kTokens, model.vocab_size}), hidden.tensor());
  return logits;
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, ImportedModelComputesTheSame) {
  const TemporaryFolder out;
  import_hugging_face(kGolden / GetParam(), tokenizer_json(), out / "model.h5");
  const Checkpoint checkpoint = Checkpoint::open(out / "model.h5");
  EXPECT_FALSE(checkpoint.has_optimizer_state());
  EXPECT_EQ(checkpoint.info().tokenizer_json, tokenizer_json());
  EXPECT_THAT(verify_checkpoint(out / "model.h5"), testing::IsEmpty());
  const std::string expected = bytes_of(kGolden / GetParam() / "logits.bin");
  const std::vector<float> logits = logits_of(checkpoint);
  ASSERT_EQ(expected.size(), logits.size() * sizeof(float));
  // Logits are below 4 here; each passes through some 10 sums of at most 64 products, every one
  // wrong by a few 2^-24 of its largest term: 10 * 64 * 4 * 2^-24 = 1.5e-4 at the very worst, and
  // their square root of that in practice. A swapped matrix is wrong by 0.1 and more.
  for (size_t i = 0; i < logits.size(); i++) {
    float want = 0;
    std::memcpy(&want, expected.data() + i * sizeof(float), sizeof(float));
    ASSERT_NEAR(logits[i], want, 2e-5) << i;
  }
}

TEST_P(Golden, ExportGivesBackWhatWasImported) {
  const TemporaryFolder out;
  import_hugging_face(kGolden / GetParam(), tokenizer_json(), out / "model.h5");
  export_hugging_face(Checkpoint::open(out / "model.h5"), out / "exported");
  const SafetensorsFolder before(kGolden / GetParam()), after(out / "exported");
  const json config = json::parse(read_file(out / "exported/config.json"));
  for (const std::string& name : after.names()) {
    const std::string short_name = name.starts_with("transformer.") ? name.substr(12) : name;
    const std::string there = before.contains(name) ? name : short_name;
    ASSERT_TRUE(before.contains(there)) << name;
    EXPECT_EQ(after.entry(name).dtype, "F32");
    EXPECT_EQ(after.entry(name).shape, before.entry(there).shape) << name;
    EXPECT_EQ(after.read(name), before.read(there)) << name;
  }
  EXPECT_EQ(bytes_of(out / "exported/tokenizer.json"), tokenizer_json());
  EXPECT_EQ(config["eos_token_id"], 256);
  // And once more: nothing is lost on the way.
  import_hugging_face(out / "exported", tokenizer_json(), out / "again.h5");
  EXPECT_THAT(diff_checkpoints(Checkpoint::open(out / "model.h5"),
                               Checkpoint::open(out / "again.h5"), false),
              testing::IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(HuggingFace, Golden,
                         testing::Values("gpt2", "gpt2_bare", "llama", "llama_tied"),
                         [](const auto& test) { return std::string(test.param); });

TEST(HuggingFace, FilesOfTransformersComeBackByteForByte) {
  const TemporaryFolder out;
  import_hugging_face(kGolden / "gpt2", tokenizer_json(), out / "model.h5");
  export_hugging_face(Checkpoint::open(out / "model.h5"), out / "exported");
  // Each tensor of the file that `transformers` wrote stands in ours as the same run of bytes.
  const std::string ours = bytes_of(out / "exported/model.safetensors");
  const std::string theirs = bytes_of(kGolden / "gpt2/model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, theirs.data(), sizeof(length));
  const json header = json::parse(theirs.substr(8, length));
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    EXPECT_NE(ours.find(theirs.substr(8 + length + begin, end - begin)), std::string::npos) << name;
  }
}

// A copy of a golden folder to be spoilt.
class Spoilt {
 public:
  explicit Spoilt(const char* name = "gpt2") { fs::copy(kGolden / name, folder_ / "hf"); }
  Spoilt& config(const json& changes) {
    json config = json::parse(read_file(folder_ / "hf/config.json"));
    config.update(changes);
    write_bytes(folder_ / "hf/config.json", config.dump());
    return *this;
  }
  fs::path operator/(const char* name) const { return folder_ / "hf" / name; }
  std::string import_error(const std::string& tokenizer = tokenizer_json()) const {
    const std::string message =
        message_of([&] { import_hugging_face(folder_ / "hf", tokenizer, folder_ / "model.h5"); });
    EXPECT_FALSE(fs::exists(folder_ / "model.h5"));
    EXPECT_FALSE(fs::exists(folder_ / "model.h5.partial"));
    return message;
  }

 private:
  TemporaryFolder folder_;
};

TEST(HuggingFace, RefusesWhatOurModelsDoNotHave) {
  struct Case {
    const char* folder;
    json changes;
    std::vector<std::string> named;
  };
  const std::vector<Case> cases{
      {"gpt2", {{"model_type", "mistral"}}, {"model_type", "mistral"}},
      {"gpt2", {{"architectures", {"GPT2ForSequenceClassification"}}}, {"architectures"}},
      {"gpt2", {{"scale_attn_by_inverse_layer_idx", true}}, {"scale_attn_by_inverse_layer_idx"}},
      {"gpt2", {{"scale_attn_weights", false}}, {"scale_attn_weights", "true"}},
      {"gpt2", {{"add_cross_attention", true}}, {"add_cross_attention"}},
      {"gpt2", {{"activation_function", "mish"}}, {"activation_function", "mish"}},
      {"gpt2", {{"n_layer", "two"}}, {"n_layer", "two"}},
      {"gpt2", {{"n_embd", 4611686018427387904}}, {"n_embd"}},
      {"gpt2", {{"n_head", 3}}, {"config.json", "3"}},
      {"gpt2", {{"n_head", 0}}, {"config.json", "0"}},
      {"gpt2", {{"quantization_config", {{"bits", 4}}}}, {"quantization_config"}},
      {"llama", {{"attention_bias", true}}, {"attention_bias"}},
      {"llama", {{"mlp_bias", true}}, {"mlp_bias"}},
      {"llama",
       {{"rope_parameters", {{"rope_type", "yarn"}, {"factor", 2}}}},
       {"rope_type", "yarn"}},
      {"llama", {{"rope_parameters", {{"rope_type", "llama3"}}}}, {"rope_parameters.factor"}},
      {"llama", {{"rope_parameters", 5}}, {"rope_parameters"}},
      {"llama_tied",
       {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}},
       {"rope_scaling.type"}},
      {"llama", {{"num_key_value_heads", 3}}, {"3", "config.json"}}};
  for (const Case& test : cases) {
    const std::string message = Spoilt(test.folder).config(test.changes).import_error();
    for (const std::string& part : test.named) EXPECT_THAT(message, HasSubstr(part));
  }
}

TEST(HuggingFace, NamesTensorsThatDoNotFit) {
  EXPECT_THAT(Spoilt().config({{"n_layer", 3}}).import_error(),
              AllOf(HasSubstr("h.2.ln_1.weight"), HasSubstr("no tensor")));
  EXPECT_THAT(Spoilt().config({{"n_layer", 1}}).import_error(),
              AllOf(HasSubstr("transformer.h.1."), HasSubstr("no place")));
  EXPECT_THAT(Spoilt().config({{"n_positions", 17}}).import_error(),
              AllOf(HasSubstr("wpe.weight"), HasSubstr("(16, 16)"), HasSubstr("(17, 16)")));
  EXPECT_THAT(Spoilt().config({{"tie_word_embeddings", false}}).import_error(),
              HasSubstr("lm_head.weight"));
  EXPECT_THAT(Spoilt("llama").config({{"tie_word_embeddings", true}}).import_error(),
              HasSubstr("lm_head.weight is not"));
  EXPECT_THAT(Spoilt().config({{"vocab_size", 256}}).import_error(),
              AllOf(HasSubstr("vocab_size is 256"), HasSubstr("256")));
}

TEST(HuggingFace, NamesFilesThatAreMissingOrBroken) {
  {
    Spoilt folder;
    fs::remove(folder / "config.json");
    EXPECT_THAT(folder.import_error(), HasSubstr("config.json"));
    write_bytes(folder / "config.json", "{not json");
    EXPECT_THAT(folder.import_error(), HasSubstr("config.json is not JSON"));
  }
  {
    Spoilt folder;
    fs::rename(folder / "model.safetensors", folder / "pytorch_model.bin");
    EXPECT_THAT(folder.import_error(), HasSubstr("save_pretrained"));
    fs::remove(folder / "pytorch_model.bin");
    EXPECT_THAT(folder.import_error(), HasSubstr("no model.safetensors"));
  }
  {
    Spoilt folder("llama");
    fs::remove(folder / "model-00002-of-00003.safetensors");
    EXPECT_THAT(folder.import_error(), HasSubstr("model-00002-of-00003.safetensors"));
  }
  for (const char* way_out : {"../gpt2/model.safetensors", "/etc/passwd", "..", ""}) {
    Spoilt folder("llama");
    json index = json::parse(read_file(folder / "model.safetensors.index.json"));
    index["weight_map"]["lm_head.weight"] = way_out;
    write_bytes(folder / "model.safetensors.index.json", index.dump());
    EXPECT_THAT(folder.import_error(), HasSubstr(way_out));
  }
}

TEST(HuggingFace, DoesNotOverwrite) {
  const TemporaryFolder out;
  import_hugging_face(kGolden / "gpt2", tokenizer_json(), out / "model.h5");
  const auto again = [&] {
    import_hugging_face(kGolden / "gpt2", tokenizer_json(), out / "model.h5");
  };
  EXPECT_THAT(message_of<UsageError>(again), HasSubstr("model.h5 exists"));
  fs::create_directories(out / "full/of");
  const Checkpoint checkpoint = Checkpoint::open(out / "model.h5");
  EXPECT_THAT(message_of<UsageError>([&] { export_hugging_face(checkpoint, out / "full"); }),
              HasSubstr("not an empty folder"));
  EXPECT_THAT(message_of([&] { export_hugging_face(checkpoint, out / "no/such/place"); }),
              HasSubstr("no/such/place"));
  EXPECT_THAT(message_of([&] { export_h5(checkpoint, out / "no/such/place.h5"); }),
              HasSubstr("no/such/place"));
}

TEST(HuggingFace, ConfigurationsComeBack) {
  ModelConfig gpt2 = tiny_gpt2(), llama = tiny_llama();
  gpt2.dropout = 0.1f;
  gpt2.tied_embeddings = false;
  gpt2.norm_epsilon = 1e-6f;
  llama.head_dim = 10;
  llama.rope_theta = 500000;
  ModelConfig plain = llama;
  plain.rope_scaling.reset();
  plain.tied_embeddings = true;
  for (ModelConfig config : {gpt2, llama, plain}) {
    for (const auto activation :
         {kernels::Activation::relu, kernels::Activation::sigmoid, kernels::Activation::tanh,
          kernels::Activation::gelu, kernels::Activation::gelu_tanh, kernels::Activation::silu}) {
      config.activation = activation;
      const json theirs = model_config_to_hugging_face(config);
      EXPECT_EQ(model_config_from_hugging_face(json::parse(theirs.dump()), "config.json"), config);
    }
  }
  EXPECT_EQ(model_config_to_hugging_face(gpt2)["layer_norm_epsilon"].dump(), "1e-06");
}

// What a hostile or damaged safetensors file may look like: none is opened.
TEST(Safetensors, RefusesBrokenFiles) {
  const TemporaryFolder folder;
  const auto file = [](const std::string& header, const std::string& data, uint64_t extra = 0) {
    const uint64_t length = header.size() + extra;
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
  };
  const std::string eight(8, 'x');
  const std::string good = file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", eight);
  write_bytes(folder / "good", good);
  EXPECT_EQ(SafetensorsFile(folder / "good").entries().size(), 1);
  const std::vector<std::string> broken{
      "",
      "1234567",
      std::string(8, '\xff'),
      std::string(8, '\x7f') + "{}",
      file("", ""),
      file("{}", "", 1),
      file("{}", "left over"),
      file("[]", ""),
      file("nonsense", ""),
      file(std::string(100000, '['), ""),
      file(R"({"a":5})", ""),
      file(R"({"a":{"dtype":"F32","shape":[2]}})", eight),
      file(R"({"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}})",
           eight),
      file(R"({"a":{"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", eight),
      file(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
           R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
           eight),
      good.substr(0, good.size() - 1),
      good + "x"};
  for (const std::string& bytes : broken) {
    write_bytes(folder / "broken", bytes);
    EXPECT_THAT(message_of([&] { SafetensorsFile(folder / "broken"); }), HasSubstr("broken"))
        << bytes.substr(0, 100);
  }
}

TEST(Safetensors, WidensExactly) {
  const TemporaryFolder folder;
  // 2, the largest finite, a subnormal, -0, infinity, a NaN with its payload.
  const uint16_t bf16_bits[] = {0x4000, 0x7f7f, 0x0001, 0x8000, 0x7f80, 0x7fc1};
  const uint16_t fp16_bits[] = {0x4000, 0x7bff, 0x0001, 0x8000, 0x7c00, 0x7e01};
  const uint32_t from_bf16[] = {0x40000000, 0x7f7f0000, 0x00010000,
                                0x80000000, 0x7f800000, 0x7fc10000};
  const uint32_t from_fp16[] = {0x40000000, 0x477fe000, 0x33800000,
                                0x80000000, 0x7f800000, 0x7fc02000};
  const std::string header = R"({"a":{"dtype":"BF16","shape":[6],"data_offsets":[0,12]},)"
                             R"("b":{"dtype":"F16","shape":[2,3],"data_offsets":[12,24]}})";
  const uint64_t length = header.size();
  write_bytes(folder / "file", std::string(reinterpret_cast<const char*>(&length), 8) + header +
                                   std::string(reinterpret_cast<const char*>(bf16_bits), 12) +
                                   std::string(reinterpret_cast<const char*>(fp16_bits), 12));
  const SafetensorsFile file(folder / "file");
  EXPECT_EQ(std::memcmp(file.read("a").data(), from_bf16, sizeof(from_bf16)), 0);
  EXPECT_EQ(std::memcmp(file.read("b").data(), from_fp16, sizeof(from_fp16)), 0);
}

}  // namespace
}  // namespace lockstep
