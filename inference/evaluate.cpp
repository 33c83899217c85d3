#include "inference/evaluate.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <vector>

#include "core/check.h"

namespace lockstep {
namespace {

// Where the windows of a split lie.
class Windows {
 public:
  Windows(const TokenStream& split, int64_t length, const EvaluationOptions& options)
      : predictable_(split.size() - 1),  // nothing comes before the first token
        length_(length),
        stride_(options.stride > 0 ? options.stride : length) {
    CHECK(options.stride <= length);
    if (predictable_ < 1) {
      throw DataError("the split has {} tokens; at least 2 are needed to predict one",
                      split.size());
    }
    const int64_t after_first = std::max<int64_t>(0, predictable_ - length_);
    count_ = 1 + (after_first + stride_ - 1) / stride_;
    if (options.max_windows > 0) count_ = std::min(count_, options.max_windows);
  }

  int64_t count() const { return count_; }
  int64_t predictable() const { return predictable_; }
  int64_t begin(int64_t window) const { return window * stride_; }
  // Tokens that a window predicts: its targets, of which the first `seen` are another's.
  int64_t predicted(int64_t window) const {
    return std::min(length_, predictable_ - begin(window));
  }
  int64_t seen(int64_t window) const { return window == 0 ? 0 : length_ - stride_; }
  int64_t counted(int64_t window) const { return predicted(window) - seen(window); }

 private:
  int64_t predictable_, length_, stride_, count_;
};

// A group of consecutive windows, padded to the model's batch. A group's shape, and so each
// window's loss to the last bit, depends neither on the worker nor on the number of workers.
class WindowBatch {
 public:
  explicit WindowBatch(const Transformer& model)
      : length_(model.options().sequence_length),
        size_(model.options().micro_batch_size),
        tokens_(DType::int32, {size_, length_}),
        targets_(DType::int32, {size_, length_}),
        losses_(DType::fp32, {size_, length_}),
        text_(static_cast<size_t>(length_) + 1) {}

  int64_t length() const { return length_; }  // of a window: predicted tokens
  int64_t size() const { return size_; }      // windows

  // Writes the loss of what counts of each of windows [first, first + count) to sums, in nats.
  void evaluate(Transformer& model, const TokenStream& split, const Windows& windows, int64_t first,
                int64_t count, double* sums) {
    for (int64_t i = 0; i < count; i++) fill(split, windows, first + i, i);
    const Tensor losses = losses_.tensor().slice(0, count);
    Batch batch;
    batch.tokens = tokens_.tensor().slice(0, count);
    batch.targets = targets_.tensor().slice(0, count);
    model.losses(batch, losses);
    for (int64_t i = 0; i < count; i++) {
      const float* row = losses.as<float>() + i * length_;
      sums[i] = 0;
      for (int64_t t = 0; t < length_; t++) sums[i] += static_cast<double>(row[t]);
    }
  }

 private:
  // The last window of a split may be shorter: the rest is not counted.
  void fill(const TokenStream& split, const Windows& windows, int64_t window, int64_t row) {
    const int64_t predicted = windows.predicted(window), seen = windows.seen(window);
    split.copy(windows.begin(window), predicted + 1, text_.data());
    int32_t* tokens = tokens_.tensor().as<int32_t>() + row * length_;
    int32_t* targets = targets_.tensor().as<int32_t>() + row * length_;
    std::fill(std::copy_n(text_.begin(), predicted, tokens), tokens + length_, 0);
    std::fill(std::copy_n(text_.begin() + 1, predicted, targets), targets + length_, -1);
    std::fill_n(targets, seen, -1);
  }

  int64_t length_, size_;
  Buffer tokens_, targets_, losses_;
  std::vector<int32_t> text_;  // a window's tokens and the one after
};

}  // namespace

Evaluation evaluate(Transformer& model, const TokenStream& split, Communicator& communicator,
                    const EvaluationOptions& options) {
  WindowBatch batch(model);
  const Windows windows(split, batch.length(), options);

  // Each worker fills in its own windows; adding zeros is exact.
  std::vector<double> sums(static_cast<size_t>(windows.count()));
  const int64_t groups = (windows.count() + batch.size() - 1) / batch.size();
  for (int64_t group = communicator.rank(); group < groups; group += communicator.size()) {
    const int64_t first = group * batch.size();
    batch.evaluate(model, split, windows, first, std::min(batch.size(), windows.count() - first),
                   &sums[first]);
  }
  communicator.set_purpose("of an evaluation");
  communicator.all_reduce(sums.data(), windows.count(), ReduceOp::sum);

  double nats = 0;
  for (const double sum : sums) nats += sum;
  std::vector<double> counted;
  Evaluation evaluation;
  for (int64_t window = 0; window < windows.count(); window++) {
    evaluation.tokens += windows.counted(window);
    counted.push_back(static_cast<double>(windows.counted(window)));
  }
  const double share =
      static_cast<double>(evaluation.tokens) / static_cast<double>(windows.predictable());
  evaluation.bytes = std::llround(share * static_cast<double>(split.bytes()));
  evaluation.loss = nats / static_cast<double>(evaluation.tokens);
  evaluation.perplexity = std::exp(evaluation.loss);
  evaluation.bits_per_byte =
      nats / std::numbers::ln2 / (share * static_cast<double>(split.bytes()));
  if (options.resamples > 0) {
    evaluation.loss_interval = bootstrap_interval(sums, counted, options.resamples, 0);
  }
  return evaluation;
}

nlohmann::json to_json(const Evaluation& evaluation) {
  nlohmann::json json = {{"loss", evaluation.loss},
                         {"perplexity", evaluation.perplexity},
                         {"bits_per_byte", evaluation.bits_per_byte},
                         {"tokens", evaluation.tokens},
                         {"bytes", evaluation.bytes}};
  if (evaluation.loss_interval) {
    json["loss_interval"] = {evaluation.loss_interval->low, evaluation.loss_interval->high};
  }
  return json;
}

}  // namespace lockstep
