#pragma once
#include "core/mirrored.h"
#include "kernels/reduce.h"

// The sums of kernels/reduce.h as numbers.
namespace lockstep::kernels::tests {

inline double sum(const Tensor& x, Stream& stream) {
  Mirrored<double> total(stream.device());
  total.upload(stream);
  add_sum(total.there(), x, stream);
  total.download(stream);
  stream.synchronize();
  return total.host();
}

inline double sum_of_squares(const Tensor& x, Stream& stream) {
  Mirrored<double> total(stream.device());
  Mirrored<Range> all(stream.device());
  all.host() = {0, x.size()};
  total.upload(stream), all.upload(stream);
  add_sums_of_squares(total.there(), x, all.there(), 1, x.size(), stream);
  total.download(stream);
  stream.synchronize();
  return total.host();
}

}  // namespace lockstep::kernels::tests
