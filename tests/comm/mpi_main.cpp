// GoogleTest under mpirun: every worker runs every test, and fails on its own.
#include <gtest/gtest.h>

#include "tests/comm/world.h"

namespace lockstep {

MpiSession* session = nullptr;

}  // namespace lockstep

int main(int argc, char** argv) {
  lockstep::MpiSession session(&argc, &argv);
  lockstep::session = &session;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
