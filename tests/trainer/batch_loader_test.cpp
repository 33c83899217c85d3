#include "trainer/batch_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "data/prepare.h"
#include "tests/trainer/temporary_folder.h"

namespace lockstep {
namespace {

constexpr int64_t kLength = 7, kBatch = 24, kSteps = 3;

struct BatchLoaderTest : testing::Test {
  BatchLoaderTest() {
    std::ofstream text(folder.path() / "text.txt");
    for (int i = 0; i < 200; i++) text << "line " << i * 7919 % 1000 << '\n';
    text.close();
    prepare({.inputs = {folder.path() / "text.txt"},
             .output = folder.path() / "data",
             .tokenizer = "bytes"});
    dataset.emplace(Dataset::open(folder.path() / "data"));
  }

  // The sequence, and one token more, at a place of a step's global batch.
  std::vector<int32_t> sequence(const Sampler& sampler, int64_t step, int64_t place) const {
    std::vector<int32_t> tokens(kLength + 1);
    dataset->split("train").copy(sampler.first_token(step, place), kLength + 1, tokens.data());
    return tokens;
  }

  TemporaryFolder folder;
  std::optional<Dataset> dataset;
};

std::vector<int32_t> row(const Tensor& tokens, int64_t b) {
  const int32_t* begin = tokens.as<int32_t>() + b * kLength;
  return {begin, begin + kLength};
}

// Worker by worker: each place of the global batch once, in order, with the place that dropout's
// random numbers are drawn by, in each of its micro-batches.
TEST_F(BatchLoaderTest, WorkersTogetherTakeTheGlobalBatchInOrder) {
  const TokenStream& split = dataset->split("train");
  const Sampler sampler(split.size(), kLength, kBatch, 5);
  for (int workers : {1, 2, 3}) {
    for (int64_t micro_batch_size : {1, 2, 4}) {
      for (int64_t step = 0; step < kSteps; step++) {
        int64_t place = 0;
        for (int rank = 0; rank < workers; rank++) {
          BatchLoader loader(split, sampler,
                             {.batch_size = kBatch,
                              .micro_batch_size = micro_batch_size,
                              .sequence_length = kLength,
                              .rank = rank,
                              .workers = workers,
                              .virtual_workers = workers});
          const Batch share = loader.batch(step);
          ASSERT_EQ(share.tokens.shape(), Shape({kBatch / workers, kLength}));
          for (int64_t k = 0; k < kBatch / workers / micro_batch_size; k++) {
            const Batch batch = share.slice(k * micro_batch_size, (k + 1) * micro_batch_size);
            EXPECT_EQ(batch.first_sequence, static_cast<uint32_t>(place));
            ASSERT_EQ(batch.tokens.shape(), Shape({micro_batch_size, kLength}));
            for (int64_t b = 0; b < micro_batch_size; b++, place++) {
              const std::vector<int32_t> want = sequence(sampler, step, place);
              EXPECT_THAT(row(batch.tokens, b),
                          testing::ElementsAreArray(want.begin(), want.end() - 1));
              EXPECT_THAT(row(batch.targets, b),
                          testing::ElementsAreArray(want.begin() + 1, want.end()));
            }
          }
        }
        EXPECT_EQ(place, kBatch);
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
