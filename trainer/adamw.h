#pragma once
#include <cstdint>
#include <vector>

#include "core/range.h"
#include "kernels/adam.h"
#include "model/parameter_table.h"
#include "trainer/config.h"

namespace lockstep {

// AdamW, or Adam, over the ranges of the flat parameter buffer that this worker updates: the
// formulas of kernels/adam.h, with decay for the parameters that the table marks, and bias
// corrections computed in float64. Owns both moments of its ranges, and their fp32 master copy;
// where the model computes in fp32, its weights are the master copy.
class AdamW {
 public:
  // The state of one range, each (range.size()).
  struct Piece {
    Range range;
    Tensor weights;                        // of the model, in compute precision
    Tensor master, exp_avg, exp_avg_sq;    // fp32
    Piece slice(const Range& part) const;  // `part` of the flat buffer, within range
  };

  // weights (P): the model's, in compute precision, on the device that updates them; must outlive
  // this. ranges: ascending.
  AdamW(const ParameterTable& table, const OptimizerConfig& config, const Tensor& weights,
        const std::vector<Range>& ranges);

  const std::vector<Piece>& pieces() const { return pieces_; }

  // Rounds the master copy into the model's weights: after it was filled from outside.
  void publish_weights(Stream& stream);

  // Of the update that follows `updates_done` earlier ones; with a gradient_factor of 1.
  kernels::AdamStep next_step(double learning_rate, int64_t updates_done) const;

  // gradients (P) fp32, of which only the ranges are read; each is multiplied by the step's
  // gradient_factor first. Writes moments, master and the model's weights, unless the step is
  // skipped. step: one, in the memory of the device that updates.
  void update(const Tensor& gradients, const kernels::AdamStep* step, Stream& stream);

  int64_t memory_bytes() const { return memory_.size_bytes(); }  // beside the model's weights

 private:
  // Neighbouring parameters of one piece that are treated alike.
  struct Run {
    Piece state;
    bool decay;
  };

  OptimizerConfig config_;
  Buffer memory_;
  std::vector<Piece> pieces_;
  std::vector<Run> runs_;
};

}  // namespace lockstep
