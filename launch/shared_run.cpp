#include "launch/shared_run.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "comm/agreement.h"
#include "core/file.h"

namespace lockstep::launch {
namespace {

namespace fs = std::filesystem;

bool sees_lease(const fs::path& file, const std::string& token) {
  std::error_code error;
  // Listing asks a network file system anew.
  for (fs::directory_iterator each(file.parent_path(), error), end; !error && each != end;
       each.increment(error)) {
  }
  try {
    const auto lease = nlohmann::json::parse(read_file(file), nullptr, false);
    return holder_from_json(lease).token == token;
  } catch (const DataError&) {  // not there, or replaced by the next beat at this moment
    return false;
  }
}

}  // namespace

void check_run_is_shared(const RunLease& lease, const fs::path& run, double patience_s,
                         MpiSession& session) {
  Communicator& world = session.world();
  world.set_purpose("of who holds the run folder");
  std::string token = lease.held() ? lease.self().token : "";
  std::string writer = session.host();
  world.broadcast(token, 0);
  if (token.empty()) return;
  world.broadcast(writer, 0);
  run_together(world, [&] {
    const fs::path file = lease_of_run(run).file;
    const auto start = std::chrono::steady_clock::now();
    const std::chrono::duration<double> patience(patience_s);
    while (!sees_lease(file, token)) {
      if (std::chrono::steady_clock::now() - start > patience) {
        throw DataError(
            "worker {} on {} does not see {}, which worker 0 on {} has written: choose a --run on "
            "a file system that all workers share",
            session.rank(), session.host(), file.string(), writer);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
  });
}

}  // namespace lockstep::launch
