#pragma once
#include <cstdint>
#include <span>
#include <vector>

// Which tokens a random choice may take, and how likely each is: small functions that follow each
// other in the order in which they stand here (Hugging Face's). Each filter keeps one token at
// least, and leaves probabilities that add up to 1 again.
namespace lockstep {

struct Candidate {
  int32_t token;
  double probability;
};

// The k largest scores, and all that equal the k-th (Fan et al., 2018; Hugging Face:
// TopKLogitsWarper); k = 0 or at least V: all. Negative infinity is never kept. Writes `kept`, by
// id, without probabilities; `scratch` is overwritten.
void keep_top_k(std::span<const double> scores, int64_t k, std::vector<Candidate>& kept,
                std::vector<double>& scratch);

// p = exp((score - largest) / temperature) / their sum; temperature > 0. (It divides the logits
// before top-k in Hugging Face's order; as it changes no order, it may wait until after.)
void softmax(std::vector<Candidate>& kept, std::span<const double> scores, double temperature);

// The likeliest tokens until their sum reaches p, the token that reaches it included; among equals
// the lower id first (Holtzman et al., 2020; Hugging Face: TopPLogitsWarper). p in [0, 1]; 0: the
// likeliest alone. Leaves the likeliest first.
void keep_top_p(std::vector<Candidate>& kept, double p);

// What is at least `ratio` times as likely as the likeliest (Nguyen et al., 2024; Hugging Face:
// MinPLogitsWarper). ratio in [0, 1].
void keep_min_p(std::vector<Candidate>& kept, double ratio);

// The tokens whose surprise -ln p lies nearest to the entropy H = -sum p ln p, until their
// probabilities reach p, with all that are as near as the last of them (Meister et al., 2023;
// Hugging Face: TypicalLogitsWarper). The likeliest token may go. p in (0, 1]. Keeps the order;
// `scratch` is overwritten.
void keep_typical(std::vector<Candidate>& kept, double p, std::vector<Candidate>& scratch);

}  // namespace lockstep
