#include "inference/bootstrap.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.h"
#include "core/random.h"

namespace lockstep {
namespace {

// Keeps these random numbers apart from others of the same seed.
constexpr uint64_t kKey = 0x424f4f5453545250;

// One of `count`, uniform but for 2^-32.
size_t draw(uint64_t seed, uint64_t resample, uint64_t place, uint64_t count) {
  const PhiloxCounter random =
      philox({static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32),
              static_cast<uint32_t>(resample), static_cast<uint32_t>(resample >> 32)},
             philox_key(seed ^ kKey));
  const uint64_t bits = uint64_t{random[0]} << 32 | random[1];
  return static_cast<size_t>(std::ldexp(static_cast<double>(bits >> 11), -53) *
                             static_cast<double>(count));
}

// Between the two values nearest to the place, as NumPy's percentile does.
double percentile(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = place - static_cast<double>(below);
  return sorted[below] + part * (sorted[above] - sorted[below]);
}

}  // namespace

ConfidenceInterval bootstrap_interval(std::span<const double> numerators,
                                      std::span<const double> denominators, int64_t resamples,
                                      uint64_t seed) {
  const size_t count = numerators.size();
  CHECK(count >= 1 && denominators.size() == count && resamples >= 1);
  std::vector<double> ratios(static_cast<size_t>(resamples));
  for (size_t i = 0; i < ratios.size(); i++) {
    double numerator = 0, denominator = 0;
    for (size_t k = 0; k < count; k++) {
      const size_t sample = draw(seed, i, k, count);
      numerator += numerators[sample];
      denominator += denominators[sample];
    }
    ratios[i] = numerator / denominator;
  }
  std::sort(ratios.begin(), ratios.end());
  return {percentile(ratios, 0.025), percentile(ratios, 0.975)};
}

}  // namespace lockstep
