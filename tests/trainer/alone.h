#pragma once
#include <algorithm>

#include "comm/communicator.h"

namespace lockstep {

// A world of one worker, without MPI.
class Alone : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce(const Tensor&, ReduceOp, Stream&) override {}
  void all_reduce(double*, int64_t, ReduceOp) override {}
  void all_gather(const Tensor&, Stream&) override {}
  void reduce_scatter(const Tensor& out, const Tensor& data, Stream&) override {
    std::copy_n(static_cast<const char*>(data.data()), data.size_bytes(),
                static_cast<char*>(out.data()));
  }
  void all_to_all(const Tensor& out, const Tensor& data, Stream& stream) override {
    reduce_scatter(out, data, stream);
  }
  void broadcast(const Tensor&, int, Stream&) override {}
  void broadcast(std::string&, int) override {}
  std::vector<std::string> gather(const std::string& text) override { return {text}; }
  void barrier() override {}
  std::unique_ptr<Communicator> duplicate() override { return std::make_unique<Alone>(); }
  void set_purpose(const std::string&) override {}
  void set_deadline(double) override {}
  void cancel() override {}
};

}  // namespace lockstep
