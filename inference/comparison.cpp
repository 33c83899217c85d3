#include "inference/comparison.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "core/check.h"
#include "core/thread_pool.h"
#include "inference/sampling.h"
#include "model/decoder.h"

namespace lockstep {
namespace {

constexpr int64_t kRowsAtOnce = 64;  // of logits
constexpr int64_t kPageTokens = 16;

// A model, and its logits for some rows of a window.
class Side {
 public:
  Side(const ModelConfig& config, const Weights& weights)
      : decoder_(config, weights.parameters()),
        pages_(config, kPageTokens, weights.parameters().tokens.dtype()),
        hidden_(weights.parameters().tokens.dtype(), {config.context_length, config.hidden_size}),
        logits_(DType::fp32, {kRowsAtOnce, config.vocab_size}) {}

  void read(std::span<const int32_t> tokens) {
    const auto count = static_cast<int64_t>(tokens.size());
    KvSequence sequence(pages_);
    const NewTokens all{&sequence, tokens, count};
    decoder_.forward(std::span(&all, 1), kernels::Rows::in_tiles, hidden_.tensor().slice(0, count));
  }
  void compute_logits(int64_t first, int64_t count) {
    decoder_.logits(logits_.tensor().slice(0, count), hidden_.tensor().slice(first, first + count));
  }
  std::span<const float> row(int64_t i) const {
    const auto size = static_cast<size_t>(logits_.tensor().cols());
    return {logits_.tensor().as<float>() + i * logits_.tensor().cols(), size};
  }

 private:
  Decoder decoder_;
  KvPages pages_;
  Buffer hidden_, logits_;
};

struct TokenFigures {
  double loss_before, loss_after, divergence;
  bool agrees;
};

TokenFigures figures_of(std::span<const float> before, std::span<const float> after,
                        int32_t target) {
  const double lse_before = log_sum_exp(before), lse_after = log_sum_exp(after);
  TokenFigures figures{lse_before - before[target], lse_after - after[target], 0, false};
  for (size_t v = 0; v < before.size(); v++) {
    const double p = before[v] - lse_before, q = after[v] - lse_after;
    figures.divergence += std::exp(p) * (p - q);
  }
  figures.agrees = std::max_element(before.begin(), before.end()) - before.begin() ==
                   std::max_element(after.begin(), after.end()) - after.begin();
  return figures;
}

}  // namespace

Comparison compare(const ModelConfig& config, const Weights& before, const Weights& after,
                   const TokenStream& split, int64_t max_tokens) {
  const int64_t predictable = split.size() - 1, length = config.context_length;
  if (predictable < 1) {
    throw DataError("the split has {} tokens; at least 2 are needed to predict one", split.size());
  }
  int64_t windows = (predictable + length - 1) / length;
  if (max_tokens > 0) windows = std::min(windows, (max_tokens + length - 1) / length);
  Side old_side(config, before), new_side(config, after);
  std::vector<int32_t> text(length + 1);
  std::vector<TokenFigures> figures(kRowsAtOnce);
  Comparison result;
  double loss_before = 0, loss_after = 0;
  for (int64_t window = 0; window < windows; window++) {
    const int64_t begin = window * length, count = std::min(length, predictable - begin);
    split.copy(begin, count + 1, text.data());
    const auto tokens = std::span<const int32_t>(text).first(static_cast<size_t>(count));
    old_side.read(tokens);
    new_side.read(tokens);
    for (int64_t first = 0; first < count; first += kRowsAtOnce) {
      const int64_t rows = std::min(kRowsAtOnce, count - first);
      old_side.compute_logits(first, rows);
      new_side.compute_logits(first, rows);
      parallel_for(rows, 1, [&](int64_t i, int64_t) {
        figures[i] = figures_of(old_side.row(i), new_side.row(i), text[first + i + 1]);
      });
      for (int64_t i = 0; i < rows; i++) {
        loss_before += figures[i].loss_before;
        loss_after += figures[i].loss_after;
        result.kl_divergence += figures[i].divergence;
        result.top_1_agreement += figures[i].agrees ? 1 : 0;
      }
    }
    result.tokens += count;
  }
  const auto tokens = static_cast<double>(result.tokens);
  result.perplexity_before = std::exp(loss_before / tokens);
  result.perplexity_after = std::exp(loss_after / tokens);
  result.kl_divergence /= tokens;
  result.top_1_agreement /= tokens;
  if (!std::isfinite(result.perplexity_before + result.perplexity_after + result.kl_divergence)) {
    throw DataError("a logit is not finite: the weights are damaged");
  }
  return result;
}

}  // namespace lockstep
