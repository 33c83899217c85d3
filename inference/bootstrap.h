#pragma once
#include <cstdint>
#include <span>

namespace lockstep {

struct ConfidenceInterval {
  double low, high;
};

// The 95 % interval of sum(numerators) / sum(denominators), the mean of a figure over samples of
// different weight: from the 2.5th to the 97.5th percentile of the same ratio over `resamples`
// draws of as many samples with replacement (Efron, 1979). Samples are taken to be independent. A
// function of its arguments alone.
ConfidenceInterval bootstrap_interval(std::span<const double> numerators,
                                      std::span<const double> denominators, int64_t resamples,
                                      uint64_t seed);

}  // namespace lockstep
