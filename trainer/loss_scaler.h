#pragma once
#include <cstdint>
#include <optional>

namespace lockstep {

// The factor that lifts fp16's gradients out of the range where they would round to zero
// (Micikevicius et al., 2018): pure policy. Dynamic: doubled after 2,000 clean steps in a row,
// halved at an overflow, never below 1. All numbers are powers of two, so that scaling rounds
// nothing.
class LossScaler {
 public:
  static constexpr double kInitialScale = 65536;
  static constexpr double kFloor = 1;
  static constexpr int64_t kGrowAfter = 2000;  // clean steps

  static LossScaler dynamic() { return LossScaler(true, kInitialScale); }
  static LossScaler fixed(double scale) { return LossScaler(false, scale); }

  double scale() const { return scale_; }
  int64_t clean_steps() const { return clean_steps_; }
  bool is_dynamic() const { return dynamic_; }
  // False: another overflow will meet the same scale.
  bool can_lower() const { return dynamic_ && scale_ > kFloor; }

  void succeeded();   // gradients were finite
  void overflowed();  // they were not

  // Goes on from a checkpoint.
  void restore(double scale, int64_t clean_steps);

 private:
  LossScaler(bool dynamic, double scale) : dynamic_(dynamic), scale_(scale) {}

  bool dynamic_;
  double scale_;
  int64_t clean_steps_ = 0;
};

}  // namespace lockstep
