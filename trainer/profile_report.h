#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/profile.h"

// What a Profile of some steps says: where their time went, and how near the machine's rates each
// kernel came.
namespace lockstep {

// Totals of one worker, or of several together.
struct ProfileTotals {
  // All work, or all waits, of one name; of matrix products, also of one size.
  struct Row {
    std::string name;     // "layernorm_forward", "product_forward 512x128x384"
    bool beside = false;  // not by the thread or stream that computes: at the same time
    int64_t calls = 0;
    double seconds = 0;       // without what other rows within it take
    double idle_seconds = 0;  // of them, that one thread waited for others
    double bytes = 0, flops = 0;
    bool link = false;  // bytes are sent, not read and written
  };
  // A stage of the host, all of one place in the hierarchy together.
  struct Stage {
    std::string path;  // "step/backward/layer"
    double seconds = 0;
    double own_seconds = 0;  // in no row and no stage within it
  };
  int64_t steps = 0, workers = 1;
  double step_seconds = 0;  // of all steps
  std::vector<Row> rows;
  std::vector<Stage> stages;  // as they first began

  void add(const ProfileTotals& other);  // of other workers, of the same steps
};

// Steps are the stages called "step".
ProfileTotals profile_totals(const std::vector<Track>& tracks);

nlohmann::json to_json(const ProfileTotals& totals);
ProfileTotals profile_totals_from_json(const nlohmann::json& json);

// What a worker's share of the machine achieves, as measured.
struct MachineRates {
  double product_flops = 0;  // a second, of large matrix products
  double memory_bytes = 0;   // a second, beyond the caches
};

// Per step and worker: a row a kernel, the longest first; what is in none of them, so that the sum
// is the step; what ran beside it; the stages.
std::string profile_table(const ProfileTotals& totals, const MachineRates& machine);

// The spans as events of Chrome's trace format, separated by commas: a process a worker, a thread a
// track. `host`: where the worker runs.
std::string trace_events(const std::vector<Track>& tracks, int worker, const std::string& host);

}  // namespace lockstep
