#include "core/text.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

TEST(Text, SizesTakeTheUnitThatFits) {
  EXPECT_EQ(size_text(0), "0 bytes");
  EXPECT_EQ(size_text(1023), "1023 bytes");
  EXPECT_EQ(size_text(1536), "1.5 KiB");
  EXPECT_EQ(size_text(int64_t{3} << 40), "3.0 TiB");
}

TEST(Text, CountsAreGrouped) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(-1000), "-1,000");
  EXPECT_EQ(grouped(1234567), "1,234,567");
  EXPECT_EQ(count_text(999999), "999,999");
  EXPECT_EQ(count_text(124439808), "124.44 million");
}

TEST(Text, OneIsNotPlural) {
  EXPECT_EQ(plural(1, "worker"), "1 worker");
  EXPECT_EQ(plural(0, "worker"), "0 workers");
  EXPECT_EQ(plural(2, "worker"), "2 workers");
}

}  // namespace
}  // namespace lockstep
