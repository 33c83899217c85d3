#include "trainer/rehearsal.h"

#include <algorithm>
#include <map>

#include "comm/rehearsed_communicator.h"

namespace lockstep {
namespace {

const std::atomic<bool> never{false};

// Batches of nothing but token 0.
class RehearsedBatches : public BatchSource {
 public:
  explicit RehearsedBatches(const BatchPlan& plan)
      : BatchSource(plan), tokens_(DType::int32, {plan.worker_sequences(), plan.sequence_length}) {}
  Batch batch(int64_t) override { return {tokens_.tensor(), tokens_.tensor()}; }

 private:
  Buffer tokens_;
};

// A worker of a training within a Rehearsal.
class RehearsedTraining {
 public:
  RehearsedTraining(const TrainConfig& config, int rank, int workers)
      : communicator_(rehearsed_communicator(rank, workers)),
        training_(config, *communicator_,
                  std::make_unique<RehearsedBatches>(batch_plan(config, *communicator_)), never) {}
  Training& training() { return training_; }

 private:
  std::unique_ptr<Communicator> communicator_;
  Training training_;
};

}  // namespace

Training::Memory planned_memory(const TrainConfig& config, int rank, int workers) {
  const Rehearsal rehearsal;
  return RehearsedTraining(config, rank, workers).training().memory();
}

int64_t largest_micro_batch(const TrainConfig& config, const Training::Memory& plan,
                            int64_t memory_bytes) {
  const int64_t padded_size = plan.model.weights / size_bytes(config.precision);
  const auto fits = [&](int64_t sequences) {
    Transformer::Options options = model_options(config, padded_size);
    options.micro_batch_size = sequences;
    const auto model = Transformer::planned_memory(config.model, options);
    return model.total() + plan.total() - plan.model.total() <= memory_bytes;
  };
  if (!fits(1)) return 0;
  int64_t most = 1, too_many = 2;
  while (fits(too_many)) most = too_many, too_many *= 2;
  while (too_many - most > 1) {
    const int64_t middle = (most + too_many) / 2;
    (fits(middle) ? most : too_many) = middle;
  }
  return most;
}

const std::vector<GpuLimits>& known_gpus() {
  static const std::vector<GpuLimits> all = {
      {"h100", "H100 SXM", 3.35e12, 989.4e12, 66.9e12, 450e9},
      {"a100", "A100 SXM 80 GB", 2.039e12, 311.9e12, 19.5e12, 300e9},
      {"h200", "H200 SXM", 4.8e12, 989.4e12, 66.9e12, 450e9},
  };
  return all;
}

Prediction predicted_time(const WorkLog& log, size_t first, const GpuLimits& gpu,
                          const Efficiency& efficiency) {
  const auto& entries = log.entries();
  std::map<std::string_view, Prediction::Row> rows;
  std::vector<double> stream_end(static_cast<size_t>(log.num_streams()), 0);
  std::vector<double> end(entries.size(), 0);  // of each entry; 0 for earlier ones
  for (size_t i = first; i < entries.size(); i++) {
    const WorkLog::Entry& entry = entries[i];
    double& now = stream_end[static_cast<size_t>(entry.stream)];
    if (entry.waits_for >= 0) {
      now = std::max(now, end[static_cast<size_t>(entry.waits_for)]);
    } else {
      const Work& work = entry.work;
      const bool link = work.unit == Unit::link;
      const double arithmetic_s = work.unit == Unit::tensor
                                      ? work.flops / (gpu.tensor_rate * efficiency.tensor)
                                      : work.flops / (gpu.vector_rate * efficiency.vector);
      const double transfer_s = work.bytes / (link ? gpu.link_rate * efficiency.link
                                                   : gpu.memory_rate * efficiency.memory);
      const double seconds = std::max(arithmetic_s, transfer_s) + efficiency.launch_s;
      Prediction::Row& row = rows[work.name];
      row.name = work.name;
      row.calls++;
      row.bytes += work.bytes;
      row.flops += work.flops;
      row.seconds += seconds;
      row.launch_s += efficiency.launch_s;
      if (transfer_s >= arithmetic_s) row.transfer_s += transfer_s;
      now += seconds;
    }
    end[i] = now;
  }
  Prediction prediction;
  for (const auto& [name, row] : rows) prediction.rows.push_back(row);
  std::stable_sort(prediction.rows.begin(), prediction.rows.end(),
                   [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  for (const double stream : stream_end) prediction.step_s = std::max(prediction.step_s, stream);
  return prediction;
}

Prediction predicted_step(const TrainConfig& config, int workers, const GpuLimits& gpu,
                          const Efficiency& efficiency) {
  CHECK(kCudaIsBuilt && config.device == Device::cuda);
  Rehearsal rehearsal;
  RehearsedTraining rehearsed(config, 0, workers);
  const size_t first = rehearsal.log().entries().size();
  rehearsed.training().step();
  Prediction prediction = predicted_time(rehearsal.log(), first, gpu, efficiency);
  const auto tokens = static_cast<double>(rehearsed.training().plan().step_tokens());
  prediction.tokens_per_second = tokens / prediction.step_s;
  prediction.peak_share = prediction.tokens_per_second / workers *
                          training_flops_per_token(config.model) / gpu.tensor_rate;
  return prediction;
}

}  // namespace lockstep
