#include "tests/checkpoints/quantized.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class QuantizedFile : public testing::TestWithParam<Quantization> {
 protected:
  QuantizedFile() : from_(checkpoint_in(folder_.path(), quantizable_gpt2())) {
    write_quantized(from_, GetParam(), matrices_, path_);
  }
  TemporaryFolder folder_;
  const fs::path path_ = folder_ / "quantized.h5";
  const std::vector<QuantizedBuffer> matrices_ = some_matrices(quantizable_gpt2(), GetParam());
  Checkpoint from_;
};

TEST_P(QuantizedFile, ReadsAsWritten) {
  const Checkpoint checkpoint = Checkpoint::open(path_);
  EXPECT_EQ(checkpoint.info().quantization, GetParam());
  EXPECT_EQ(checkpoint.info().model, from_.info().model);
  EXPECT_EQ(checkpoint.info().tokenizer_json, from_.info().tokenizer_json);
  EXPECT_EQ(checkpoint.info().step, 7);
  EXPECT_FALSE(checkpoint.has_optimizer_state());
  EXPECT_THAT(verify_checkpoint(path_), IsEmpty());

  const std::vector<std::string> read = read_quantized(checkpoint);
  ASSERT_EQ(read.size(), 8);  // four matrices in each of two layers
  for (size_t i = 0; i < read.size(); i++) EXPECT_EQ(read[i], bytes_of(matrices_[i].matrix()));
  for (const Parameter& parameter : checkpoint.table().parameters()) {
    if (is_quantized(parameter)) continue;
    EXPECT_EQ(read_floats(checkpoint, FlatKind::weights, parameter.offset, parameter.end()),
              read_floats(from_, FlatKind::weights, parameter.offset, parameter.end()))
        << parameter.name;
  }
}

TEST_P(QuantizedFile, WholeWeightsAreNotToBeHadFromIt) {
  const Checkpoint checkpoint = Checkpoint::open(path_);
  EXPECT_THAT(message_of([&] { checkpoint.require_whole_weights("training"); }),
              HasSubstr("quantized.h5 holds quantized weights, and training needs whole ones"));
  EXPECT_THAT(message_of([&] { export_h5(checkpoint, folder_ / "whole.h5"); }),
              HasSubstr("an export needs whole ones"));
  EXPECT_THAT(message_of([&] { export_hugging_face(checkpoint, folder_ / "hf"); }),
              HasSubstr("an export needs whole ones"));
  EXPECT_THAT(message_of([&] { diff_checkpoints(from_, checkpoint, false); }),
              HasSubstr("a comparison needs whole ones"));
  EXPECT_FALSE(fs::exists(folder_ / "whole.h5"));
}

TEST_P(QuantizedFile, DoesNotReplaceAFile) {
  EXPECT_THAT(message_of<UsageError>([&] { write_quantized(from_, GetParam(), matrices_, path_); }),
              HasSubstr("quantized.h5 exists"));
}

TEST_P(QuantizedFile, ADamagedMatrixIsNamed) {
  std::string bytes = bytes_of(path_);
  const std::string last = bytes_of(matrices_.back().matrix()).substr(0, 64);
  const size_t at = bytes.find(last);
  ASSERT_NE(at, std::string::npos);
  bytes[at + 9] ^= 2;
  write_bytes(path_, bytes);
  const std::string what = "/model/layers.1.ffn.down.weight/words is damaged";
  EXPECT_THAT(verify_checkpoint(path_), testing::ElementsAre(HasSubstr(what)));
  EXPECT_THAT(message_of([&] { read_quantized(Checkpoint::open(path_)); }), HasSubstr(what));
}

INSTANTIATE_TEST_SUITE_P(, QuantizedFile, testing::Values(kEightBits, Quantization{4, 32, true}),
                         [](const auto& p) { return std::to_string(p.param.bits) + "bits"; });

}  // namespace
}  // namespace lockstep
