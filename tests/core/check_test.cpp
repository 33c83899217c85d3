#include "core/check.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

TEST(Errors, CarryTheirExitCodeAndMessage) {
  const UsageError usage("--steps is {}, at least 1 is needed", 0);
  EXPECT_EQ(usage.exit_code(), ExitCode::usage);
  EXPECT_STREQ(usage.what(), "--steps is 0, at least 1 is needed");
  EXPECT_EQ(DataError("x").exit_code(), ExitCode::data);
  EXPECT_EQ(DeviceError("x").exit_code(), ExitCode::device);
  EXPECT_EQ(static_cast<int>(ExitCode::done), 0);
  EXPECT_EQ(static_cast<int>(ExitCode::difference), 1);
  EXPECT_EQ(static_cast<int>(ExitCode::usage), 2);
  EXPECT_EQ(static_cast<int>(ExitCode::data), 3);
  EXPECT_EQ(static_cast<int>(ExitCode::device), 4);
  EXPECT_EQ(static_cast<int>(ExitCode::stopped), 75);
}

TEST(Check, SaysWhatWhereAndWhy) {
  const auto message = [](auto f) -> std::string {
    try {
      f();
    } catch (const std::logic_error& error) {
      return error.what();
    }
    return "";
  };
  const std::string plain = message([] { CHECK(1 + 1 == 3); });
  EXPECT_NE(plain.find("1 + 1 == 3"), std::string::npos) << plain;
  EXPECT_NE(plain.find("check_test.cpp:"), std::string::npos) << plain;
  const std::string explained = message([] { CHECK(false, "{} of {}", 3, 2); });
  EXPECT_NE(explained.find("3 of 2"), std::string::npos) << explained;
  EXPECT_EQ(message([] { CHECK(true, "{}", 1); }), "");
}

TEST(Check, EvaluatesItsConditionOnce) {
  int count = 0;
  CHECK(++count == 1);
  EXPECT_EQ(count, 1);
}

}  // namespace
}  // namespace lockstep
