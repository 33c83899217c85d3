#pragma once
#include <cstdint>
#include <vector>

#include "comm/gradient_reducer.h"
#include "model/parameter_table.h"
#include "trainer/config.h"

namespace lockstep {

// AdamW, or Adam, over the slice [begin, end) of the flat parameter buffer: the formulas of
// kernels/adam.h, with decay for the parameters that the table marks, and bias corrections computed
// in float64. Owns the fp32 master copy of the slice and both moments; where the model computes in
// fp32, its weights are the master copy.
class AdamW {
 public:
  // weights (P): the model's, in compute precision; must outlive this.
  AdamW(const ParameterTable& table, const OptimizerConfig& config, const Tensor& weights,
        int64_t begin, int64_t end);

  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }
  Tensor master() const { return master_; }          // (end - begin) fp32
  Tensor exp_avg() const { return exp_avg_; }        // (end - begin) fp32
  Tensor exp_avg_sq() const { return exp_avg_sq_; }  // (end - begin) fp32

  // Rounds the master copy into the model's weights: after it was filled from outside.
  void publish_weights();

  // The update that follows `updates_done` earlier ones. Each gradient is multiplied by
  // gradient_factor first. Writes moments, master and the model's weights.
  void update(const GradientSlice& gradients, double gradient_factor, double learning_rate,
              int64_t updates_done);

 private:
  // Neighbouring parameters that are treated alike.
  struct Run {
    int64_t begin, end;  // of the slice
    bool decay;
  };

  OptimizerConfig config_;
  int64_t begin_, end_;
  std::vector<Run> runs_;
  Buffer master_memory_, exp_avg_memory_, exp_avg_sq_memory_;
  Tensor weights_, master_, exp_avg_, exp_avg_sq_;
};

}  // namespace lockstep
