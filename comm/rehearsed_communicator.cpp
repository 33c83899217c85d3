#include "comm/rehearsed_communicator.h"

#include "core/check.h"

namespace lockstep {
namespace {

class RehearsedCommunicator : public Communicator {
 public:
  RehearsedCommunicator(int rank, int workers) : rank_(rank), workers_(workers) {
    CHECK(0 <= rank && rank < workers);
  }

  int rank() const override { return rank_; }
  int size() const override { return workers_; }

  void all_reduce(const Tensor& data, ReduceOp, Stream& stream) override {
    note("all_reduce", data, stream);
  }
  void all_gather(const Tensor& data, Stream& stream) override { note("all_gather", data, stream); }
  void reduce_scatter(const Tensor&, const Tensor& data, Stream& stream) override {
    note("reduce_scatter", data, stream);
  }
  void all_to_all(const Tensor&, const Tensor& data, Stream& stream) override {
    note("all_to_all", data, stream);
  }
  void broadcast(const Tensor& data, int, Stream& stream) override {
    if (workers_ > 1) stream.note(broadcast_work(data.size_bytes(), workers_));
  }

  void all_reduce(double*, int64_t, ReduceOp) override {}
  void broadcast(std::string&, int) override {}
  std::vector<std::string> gather(const std::string& text) override {
    return rank_ == 0 ? std::vector<std::string>(static_cast<size_t>(workers_), text)
                      : std::vector<std::string>();
  }
  void barrier() override {}
  std::unique_ptr<Communicator> duplicate() override {
    return rehearsed_communicator(rank_, workers_);
  }
  void set_purpose(const std::string&) override {}
  void set_deadline(double) override {}
  void cancel() override {}

 private:
  void note(std::string_view operation, const Tensor& data, Stream& stream) const {
    if (workers_ > 1) stream.note(collective_work(operation, data.size_bytes(), workers_));
  }

  int rank_, workers_;
};

}  // namespace

std::unique_ptr<Communicator> rehearsed_communicator(int rank, int workers) {
  return std::make_unique<RehearsedCommunicator>(rank, workers);
}

}  // namespace lockstep
