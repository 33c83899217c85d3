#pragma once
#include <cmath>
#include <map>

namespace lockstep::testing {

// How often each outcome came.
template <class Outcome>
using Counts = std::map<Outcome, double>;

// Whether two samples of equal size can come from one distribution (chi-square test of
// homogeneity): false by chance once in 10^6. Outcomes seen fewer than 10 times count as one.
template <class Outcome>
bool from_one_distribution(const Counts<Outcome>& a, Counts<Outcome> b) {
  for (const auto& [outcome, count] : a) b.try_emplace(outcome, 0);
  double statistic = 0, cells = 0, rare_a = 0, rare_b = 0;
  const auto add = [&](double of_a, double of_b) {
    if (of_a + of_b == 0) return;
    statistic += (of_a - of_b) * (of_a - of_b) / (of_a + of_b);
    cells++;
  };
  for (const auto& [outcome, of_b] : b) {
    const auto found = a.find(outcome);
    const double of_a = found == a.end() ? 0 : found->second;
    if (of_a + of_b < 10) {
      rare_a += of_a, rare_b += of_b;
    } else {
      add(of_a, of_b);
    }
  }
  add(rare_a, rare_b);
  // The quantile of chi-square by Wilson and Hilferty (1931); 4.75: that of the normal
  // distribution.
  const double df = cells - 1, step = 2 / (9 * df);
  return statistic < df * std::pow(1 - step + 4.75 * std::sqrt(step), 3);
}

}  // namespace lockstep::testing
