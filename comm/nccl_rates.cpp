#include "comm/nccl_rates.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>

#include "comm/agreement.h"
#include "comm/mpi_communicator.h"
#include "comm/nccl_communicator.h"
#include "core/check.h"
#include "core/device.h"

namespace lockstep {
namespace {

constexpr int64_t kSizes[] = {8, 1 << 10, 32 << 10, 1 << 20, 32 << 20, 256 << 20};
constexpr double kLongEnough_s = 0.1;  // to measure, and for a message after which none is larger
constexpr double kMostTimes = 20;

class Measurement {
 public:
  Measurement(MpiSession& session, const std::string& algorithm, double deadline_s)
      : host_(session.world()), own_(MPI_COMM_WORLD, {.deadline_s = deadline_s}) {
    together([&] { nccl_ = nccl_communicator(own_, deadline_s, algorithm); });
  }

  AllReduceRates run() {
    for (const int64_t size_bytes : kSizes) {
      double probe = 0, seconds = 0;
      // Apart from what is collective: a GPU that is full says so before others wait for it.
      together([&] {
        if (stream_ == nullptr) stream_ = std::make_unique<Stream>(Device::cuda);
        data_ = std::make_unique<Buffer>(DType::fp32, Shape{size_bytes / 4}, Device::cuda);
      });
      together([&] {
        seconds_of_one(1);  // the first connects the workers
        probe = seconds_of_one(1);
      });
      if (!found_.failure.empty()) break;
      probe = slowest(probe);
      const int times = static_cast<int>(std::clamp(kLongEnough_s / probe, 1.0, kMostTimes));
      together([&] { seconds = seconds_of_one(times); });
      if (!found_.failure.empty()) break;
      seconds = slowest(seconds);
      const double workers = host_.size(), rate = static_cast<double>(size_bytes) / seconds;
      found_.rates.push_back({size_bytes, seconds, rate, rate * 2 * (workers - 1) / workers});
      if (probe > kLongEnough_s) break;
    }
    return found_;
  }

 private:
  // What fails on one worker ends the measurement on all. Every worker comes by here as often,
  // whatever befell it, so that they never wait for each other at different places; for one that
  // fails in an operation the others do so no longer than the communicator's deadline.
  void together(const std::function<void()>& f) {
    if (!found_.failure.empty()) return;
    try {
      run_together(host_, f);
    } catch (const SharedError& error) {
      found_.failure = error.what();
      // Their end is collective, and some may not come to it.
      own_.cancel();
      if (nccl_ != nullptr) nccl_->cancel();
    }
  }

  double seconds_of_one(int times) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; i++) nccl_->all_reduce(data_->tensor(), ReduceOp::sum, *stream_);
    stream_->synchronize();
    nccl_->check();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    return elapsed.count() / times;
  }

  double slowest(double seconds) {
    host_.all_reduce(&seconds, 1, ReduceOp::max);
    return seconds;
  }

  Communicator& host_;   // for agreements
  MpiCommunicator own_;  // NCCL's: giving up in it is not giving up in host_ (MpiCommunicator)
  std::unique_ptr<Buffer> data_;  // ends after what uses it
  std::unique_ptr<Communicator> nccl_;
  std::unique_ptr<Stream> stream_;
  AllReduceRates found_;
};

}  // namespace

AllReduceRates measure_nccl_all_reduce(MpiSession& session, const std::string& algorithm,
                                       double deadline_s) {
  return Measurement(session, algorithm, deadline_s).run();
}

}  // namespace lockstep
