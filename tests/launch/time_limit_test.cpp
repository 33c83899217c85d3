#include "launch/time_limit.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <stdexcept>

namespace lockstep::launch {
namespace {

TEST(Duration, Forms) {
  const std::pair<const char*, double> forms[] = {
      {"90", 90},        {"90s", 90},         {"90m", 5400},     {"2h30m", 9000},
      {"1d12h", 129600}, {"1d1s", 86401},     {"1:30", 90},      {"1:30:00", 5400},
      {"1-12", 129600},  {"1-12:30", 131400}, {"0-00:00:07", 7}, {"2-01:00:01", 176401},
  };
  for (const auto& [text, seconds] : forms) EXPECT_EQ(to_duration(text), seconds) << text;
}

TEST(Duration, WhatIsNone) {
  for (const char* text : {"", "0", "-5", "soon", "5x", "30m2h", "1h1h", "1.5h", "1:2:3:4", "1-",
                           ":", "1::2", "h", "999999999999", "9999d", " 5"}) {
    EXPECT_THROW(to_duration(text), std::invalid_argument) << text;
  }
}

TEST(SlurmJob, ByTheEnvironment) {
  ::unsetenv("SLURM_JOB_ID");
  EXPECT_EQ(slurm_job(), "");
  EXPECT_FALSE(slurm_job_end());
  ::setenv("SLURM_JOB_ID", "4711", 1);
  ::setenv("SLURM_JOB_END_TIME", "1700000000", 1);
  EXPECT_EQ(slurm_job(), "4711");
  EXPECT_EQ(std::chrono::system_clock::to_time_t(slurm_job_end().value()), 1700000000);
  for (const char* never : {"99999999999999", "9223372036854775807"}) {
    ::setenv("SLURM_JOB_END_TIME", never, 1);
    EXPECT_FALSE(slurm_job_end()) << never;
  }
  ::setenv("SLURM_JOB_ID", "4711; rm -rf x", 1);  // which would go to a shell
  EXPECT_EQ(slurm_job(), "");
  ::unsetenv("SLURM_JOB_ID");
  ::unsetenv("SLURM_JOB_END_TIME");
}

// squeue, as it prints the end of job 4711, of one without limit, and where it fails.
TEST(SlurmJob, BySqueue) {
  std::string folder = "/tmp/lockstep-squeue-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const std::string path = ::getenv("PATH");
  ::setenv("PATH", (folder + ":" + path).c_str(), 1);
  ::setenv("SLURM_JOB_ID", "4711", 1);
  const auto squeue = [&](const std::string& body) {
    const std::string file = folder + "/squeue";
    std::FILE* out = std::fopen(file.c_str(), "w");
    std::fputs(("#!/bin/sh\n" + body + "\n").c_str(), out);
    std::fclose(out);
    EXPECT_EQ(::system(("chmod +x " + file).c_str()), 0);
    return slurm_job_end();
  };
  const auto end = squeue("test \"$*\" = '-h -j 4711 -o %e' && echo 2025-11-25T03:00:00");
  ASSERT_TRUE(end);
  const std::time_t time = std::chrono::system_clock::to_time_t(*end);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", std::localtime(&time));
  EXPECT_STREQ(text, "2025-11-25T03:00:00");
  EXPECT_FALSE(squeue("echo N/A"));
  EXPECT_FALSE(squeue("echo 9999-12-31T23:59:59")) << "no limit";
  EXPECT_FALSE(squeue("echo no controller >&2; exit 1"));
  ::unsetenv("SLURM_JOB_ID");
  ::setenv("PATH", path.c_str(), 1);
  EXPECT_EQ(::system(("rm -r " + folder).c_str()), 0);
}

}  // namespace
}  // namespace lockstep::launch
