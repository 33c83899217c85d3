#include "tests/launch/program/world.h"

namespace lockstep::black_box {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

World& world = World::get();

// `train --dry-run` of a run that is not there.
Result dry_run(const Arguments& more, int workers = 0) {
  Arguments arguments{"train", "--dry-run",           "--data",  world.data(),
                      "--run", world.path("planned"), "--model", "gpt2-124m"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Result result = run(arguments, {.workers = workers});
  EXPECT_FALSE(fs::exists(world.path("planned")));
  return result;
}

TEST(DryRun, PlansForADeviceThatIsNotThere) {
  for (const int workers : {0, 2}) {
    const Result result = dry_run({"--device", "cuda"}, workers);
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.out, HasSubstr(workers == 2 ? "2 workers" : "1 worker,"));
    for (const char* part : {"bf16 on cuda", "weights  ", "master weights, moments", "workspace",
                             "  sum  ", "a GPU of 24 GB", "a GPU of 141 GB"}) {
      EXPECT_THAT(result.out, HasSubstr(part));
    }
    EXPECT_THAT(result.out, Not(HasSubstr("Predicted")));
  }
}

TEST(DryRun, PlansForTheCpu) {
  const Result result = dry_run({"--device", "cpu", "--precision", "fp32", "--recompute"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("fp32 on cpu"));
  EXPECT_THAT(result.out, HasSubstr("with --recompute"));
  EXPECT_THAT(result.out, Not(HasSubstr("a GPU of")));
}

TEST(DryRun, NeedsNoRunFolder) {
  const Result result = run({"train", "--dry-run", "--data", world.data(), "--device", "cuda"});
  EXPECT_EQ(result.code, 0) << result.err;
}

TEST(DryRun, PredictsAStepWhereCudaIsBuilt) {
  const Result result = dry_run({"--device", "cuda", "--predict", "h100"});
  if (result.code == 4) {
    EXPECT_THAT(result.err, HasSubstr("this build has no CUDA"));
    return;
  }
  ASSERT_EQ(result.code, 0) << result.err;
  for (const char* part : {"H100 SXM", "product_weight_gradient", "tokens/s", "% of peak"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
}

TEST(DryRun, RefusesWhatItCannotPredict) {
  expect_error(dry_run({"--device", "cpu", "--predict", "h100"}), 2, {"--device cuda"});
  expect_error(dry_run({"--device", "cuda", "--predict", "h101"}), 2, {"h100, a100, h200"});
  expect_error(
      run({"train", "--data", world.data(), "--run", world.path("planned"), "--predict", "h100"}),
      2, {"--dry-run only"});
}

}  // namespace
}  // namespace lockstep::black_box
