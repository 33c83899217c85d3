#include <gmock/gmock.h>

#include "kernels/cuda/attention_pieces.h"

namespace lockstep::kernels::cuda {
namespace {

using testing::ElementsAre;

constexpr int64_t kHead = 2 * 64 * 128;  // bytes of one head of up to 64 tokens

TEST(AttentionPieces, RowsArePadded) {
  EXPECT_EQ(score_bytes_of_head(1), kHead);
  EXPECT_EQ(score_bytes_of_head(64), kHead);
  EXPECT_EQ(score_bytes_of_head(65), 2 * kHead);
  EXPECT_EQ(score_bytes_of_head(129), 2 * 192 * 256);
}

TEST(AttentionPieces, OneWhereAllFits) {
  EXPECT_THAT(attention_pieces(20, 1024, {12, 12, 64}), ElementsAre(AttentionPiece{0, 20, 0, 12}));
  EXPECT_THAT(attention_pieces(3, 64, {4, 2, 8}, 12 * kHead),
              ElementsAre(AttentionPiece{0, 3, 0, 2}));
}

TEST(AttentionPieces, WholeSequencesWhereTheyFit) {
  EXPECT_THAT(attention_pieces(5, 64, {4, 2, 8}, 8 * kHead),
              ElementsAre(AttentionPiece{0, 2, 0, 2}, AttentionPiece{2, 2, 0, 2},
                          AttentionPiece{4, 1, 0, 2}));
  EXPECT_THAT(attention_pieces(2, 64, {4, 2, 8}, 8 * kHead - 1),
              ElementsAre(AttentionPiece{0, 1, 0, 2}, AttentionPiece{1, 1, 0, 2}));
}

TEST(AttentionPieces, GroupsOfHeadsWhereASequenceDoesNotFit) {
  EXPECT_THAT(attention_pieces(2, 64, {6, 3, 8}, 4 * kHead),
              ElementsAre(AttentionPiece{0, 1, 0, 2}, AttentionPiece{0, 1, 2, 1},
                          AttentionPiece{1, 1, 0, 2}, AttentionPiece{1, 1, 2, 1}));
}

// A group cannot be cut: a key-value head's gradient is a sum over all its query heads.
TEST(AttentionPieces, OneGroupAtLeast) {
  EXPECT_THAT(attention_pieces(1, 64, {8, 2, 8}, 1),
              ElementsAre(AttentionPiece{0, 1, 0, 1}, AttentionPiece{0, 1, 1, 1}));
}

}  // namespace
}  // namespace lockstep::kernels::cuda
