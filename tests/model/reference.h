#pragma once
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/dropout.h"
#include "model/config.h"
#include "model/parameter_table.h"

// The models again, from their papers, in float64 and as plainly as possible: one sequence, one
// vector at a time. Forward only; derivatives come from finite differences.
namespace lockstep::testing {

class Reference {
 public:
  using Row = std::vector<double>;

  // `weights`: the flat buffer.
  Reference(const ModelConfig& config, std::span<const double> weights)
      : config_(config), table_(config), weights_(weights) {}

  // Dropout as training has it, of the sequence at place `sequence` in the global batch.
  void set_dropout(double probability, uint64_t seed, uint64_t step, uint32_t sequence) {
    mask_.probability = static_cast<float>(probability);
    mask_.seed = seed;
    step_ = step;
    mask_.first_sequence = sequence;
  }

  // Loss of each token of one sequence; 0 where the target is -1.
  Row losses(std::span<const int32_t> tokens, std::span<const int32_t> targets) {
    std::vector<Row> x;
    for (size_t t = 0; t < tokens.size(); t++) {
      x.push_back(row("embedding.tokens.weight", tokens[t]));
      if (gpt2()) x.back() = sum(x.back(), row("embedding.positions.weight", t));
    }
    drop(x, 0);
    for (int64_t n = 0; n < config_.num_layers; n++) layer(x, n);
    Row losses;
    const std::string output =
        config_.tied_embeddings ? "embedding.tokens.weight" : "classifier.weight";
    for (size_t t = 0; t < tokens.size(); t++) {
      const Row logits = product(output, norm("final_norm", x[t]));
      double total = 0;
      for (double logit : logits) total += std::exp(logit);
      losses.push_back(targets[t] < 0 ? 0 : std::log(total) - logits[targets[t]]);
    }
    return losses;
  }

 private:
  bool gpt2() const { return config_.family == Family::gpt2; }

  void layer(std::vector<Row>& x, int64_t n) {
    const std::string prefix = "layers." + std::to_string(n) + ".";
    const uint32_t site = static_cast<uint32_t>(1 + 3 * n);
    std::vector<Row> qkv, branch;
    for (const Row& v : x) {
      qkv.push_back(linear(prefix + "attention.qkv", norm(prefix + "attention_norm", v)));
    }
    for (const Row& v : attention(qkv, site))
      branch.push_back(linear(prefix + "attention.output", v));
    drop(branch, site + 1);
    for (size_t t = 0; t < x.size(); t++) x[t] = sum(x[t], branch[t]);
    branch.clear();
    for (const Row& v : x) branch.push_back(feed_forward(prefix, norm(prefix + "ffn_norm", v)));
    drop(branch, site + 2);
    for (size_t t = 0; t < x.size(); t++) x[t] = sum(x[t], branch[t]);
  }

  Row feed_forward(const std::string& prefix, const Row& v) const {
    Row up = linear(prefix + (gpt2() ? "ffn.up" : "ffn.gate_up"), v);
    Row active;
    for (int64_t f = 0; f < config_.ffn_size; f++) {
      active.push_back(activation(up[f]) * (gpt2() ? 1 : up[config_.ffn_size + f]));
    }
    return linear(prefix + "ffn.down", active);
  }

  double activation(double v) const {
    const double sigmoid = 1 / (1 + std::exp(-v));
    constexpr double kPi = 3.14159265358979323846;
    switch (config_.activation) {
      case kernels::Activation::relu:
        return v > 0 ? v : 0;
      case kernels::Activation::sigmoid:
        return sigmoid;
      case kernels::Activation::tanh:
        return std::tanh(v);
      case kernels::Activation::gelu:
        return v / 2 * (1 + std::erf(v / std::sqrt(2.0)));
      case kernels::Activation::gelu_tanh:
        return v / 2 * (1 + std::tanh(std::sqrt(2 / kPi) * (v + 0.044715 * v * v * v)));
      case kernels::Activation::silu:
        return v * sigmoid;
    }
    return 0;
  }

  std::vector<Row> attention(std::vector<Row>& qkv, uint32_t site) {
    const int64_t heads = config_.num_heads, kv = config_.num_kv_heads, d = config_.head_dim;
    const auto length = static_cast<int64_t>(qkv.size());
    if (!gpt2()) {
      for (int64_t t = 0; t < length; t++) {
        for (int64_t h = 0; h < heads + kv; h++) rotate(&qkv[t][h * d], t);
      }
    }
    std::vector<Row> out(length, Row(heads * d));
    for (int64_t h = 0; h < heads; h++) {
      const int64_t group = h / (heads / kv);
      for (int64_t t = 0; t < length; t++) {
        Row p(t + 1);
        double total = 0;
        for (int64_t u = 0; u <= t; u++) {
          double score = 0;
          for (int64_t i = 0; i < d; i++) {
            score += qkv[t][h * d + i] * qkv[u][(heads + group) * d + i];
          }
          p[u] = std::exp(score / std::sqrt(static_cast<double>(d)));
          total += p[u];
        }
        for (int64_t u = 0; u <= t; u++) {
          const double weight = p[u] / total * factor(site, (h * length + t) * length + u);
          for (int64_t i = 0; i < d; i++) {
            out[t][h * d + i] += weight * qkv[u][(heads + kv + group) * d + i];
          }
        }
      }
    }
    return out;
  }

  // Turns each pair (i, i + D/2) by position * frequency.
  void rotate(double* v, int64_t position) const {
    const int64_t half = config_.head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
      double frequency = std::pow(config_.rope_theta, -static_cast<double>(i) / half);
      if (config_.rope_scaling) frequency = stretched(frequency, *config_.rope_scaling);
      const double angle = static_cast<double>(position) * frequency;
      const double a = v[i], b = v[half + i];
      v[i] = a * std::cos(angle) - b * std::sin(angle);
      v[half + i] = b * std::cos(angle) + a * std::sin(angle);
    }
  }

  // In terms of wavelengths, as Llama 3.1's reference code has it.
  static double stretched(double frequency, const RopeScaling& s) {
    const double wavelength = 2 * 3.14159265358979323846 / frequency;
    const auto length = static_cast<double>(s.original_context_length);
    if (wavelength < length / s.high_freq_factor) return frequency;
    if (wavelength > length / s.low_freq_factor) return frequency / s.factor;
    const double smooth =
        (length / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    return (1 - smooth) * frequency / s.factor + smooth * frequency;
  }

  // What dropout multiplies a place of the sequence with.
  double factor(uint32_t site, int64_t place) {
    if (!mask_.active()) return 1;
    mask_.site = site;
    mask_.step = &step_;
    const uint32_t word = mask_.words(mask_.key(), 0, static_cast<uint64_t>(place / 4))[place % 4];
    return word >= mask_.threshold() ? mask_.scale() : 0;
  }
  void drop(std::vector<Row>& rows, uint32_t site) {
    for (size_t t = 0; t < rows.size(); t++) {
      for (size_t c = 0; c < rows[t].size(); c++) {
        rows[t][c] *= factor(site, static_cast<int64_t>(t * rows[t].size() + c));
      }
    }
  }

  Row norm(const std::string& name, const Row& v) const {
    const auto n = static_cast<double>(v.size());
    double mean = 0, square = 0;
    for (double value : v) mean += gpt2() ? value / n : 0;
    for (double value : v) square += (value - mean) * (value - mean) / n;
    const Row gain = whole(name + ".weight"), bias = whole(name + ".bias");
    Row out;
    for (size_t c = 0; c < v.size(); c++) {
      out.push_back((v[c] - mean) / std::sqrt(square + double{config_.norm_epsilon}) * gain[c] +
                    (bias.empty() ? 0 : bias[c]));
    }
    return out;
  }
  Row linear(const std::string& name, const Row& v) const {
    const Row bias = whole(name + ".bias");
    const Row out = product(name + ".weight", v);
    return bias.empty() ? out : sum(out, bias);
  }
  Row product(const std::string& name, const Row& v) const {
    const Parameter& matrix = table_.at(name);
    const double* weight = &weights_[matrix.offset];
    Row out;
    for (int64_t o = 0; o < matrix.shape[0]; o++) {
      double total = 0;
      for (size_t i = 0; i < v.size(); i++) total += *weight++ * v[i];
      out.push_back(total);
    }
    return out;
  }
  static Row sum(const Row& a, const Row& b) {
    Row out;
    for (size_t c = 0; c < a.size(); c++) out.push_back(a[c] + b[c]);
    return out;
  }
  Row whole(const std::string& name) const {
    const Parameter* p = table_.find(name);
    return p == nullptr ? Row() : Row(&weights_[p->offset], &weights_[p->offset] + p->shape.size());
  }
  Row row(const std::string& name, int64_t index) const {
    const Parameter& p = table_.at(name);
    const double* begin = &weights_[p.offset + index * p.shape[1]];
    return Row(begin, begin + p.shape[1]);
  }

  const ModelConfig config_;
  const ParameterTable table_;
  std::span<const double> weights_;
  uint64_t step_ = 0;
  kernels::DropoutMask mask_;
};

}  // namespace lockstep::testing
