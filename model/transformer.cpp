#include "model/transformer.h"

#include <algorithm>

#include "core/check.h"
#include "core/profile.h"
#include "kernels/classifier.h"
#include "kernels/cuda/workspace.h"
#include "kernels/cudnn_attention.h"
#include "kernels/embedding.h"
#include "kernels/reduce.h"
#include "model/activations.h"
#include "model/layer.h"

namespace lockstep {

class Transformer::Implementation {
 public:
  // `parameters` are somebody else's; null: its own.
  Implementation(const ModelConfig& config, const Options& options,
                 const ModelParameters* parameters);

  void forward(const Batch& batch, const float* gradient_scale, double* loss_sum);
  void backward(const GroupCallback& group_ready);
  void losses(const Batch& batch, const Tensor& losses);

  const ModelConfig config_;
  const ParameterTable table_;
  const Options options_;
  const Buffer weights_, gradients_;

  Memory memory() const;

 private:
  void prepare(const Batch& batch);
  void run_layers(const Batch& batch, float dropout);
  void run_layer(int64_t layer, const Batch& batch, float dropout);
  kernels::DropoutMask embedding_dropout(const Batch& batch, float probability) const;
  LayerDropout layer_dropout(const Batch& batch, float probability, int64_t layer) const;
  kernels::DropoutMask mask(const Batch& batch, float probability, int64_t site) const;

  Keep keep_;
  ModelParameters parameters_, parameter_gradients_;
  Buffer rope_table_, arena_;
  Buffer inputs_;  // (2, B * T) int32; none on the CPU
  Activations activations_;
  int64_t planned_sequences_ = 0, planned_length_ = 0;
  Batch batch_;  // that forward saw last
  bool backward_is_due_ = false;

 public:
  Stream stream_;  // ends before the memory that its work uses
};

namespace {

Transformer::Options resolved(const ModelConfig& config, Transformer::Options options,
                              int64_t parameters) {
  if (options.padded_size == 0) options.padded_size = parameters;
  CHECK(options.padded_size >= parameters);
  if (options.sequence_length == 0) options.sequence_length = config.context_length;
  CHECK(options.precision != DType::int32);
  CHECK(options.micro_batch_size >= 1);
  CHECK(1 <= options.sequence_length && options.sequence_length <= config.context_length,
        "sequences of {} in a context of {}", options.sequence_length, config.context_length);
  return options;
}

Keep keep_of(const Transformer::Options& options) {
  if (!options.training) return Keep::nothing;
  return options.recompute ? Keep::layer_inputs : Keep::everything;
}

// Of the largest micro-batch.
int64_t arena_bytes(const ModelConfig& config, const Transformer::Options& options) {
  Activations activations;
  Arena measured;
  plan(activations, measured, config, options.precision, keep_of(options), options.micro_batch_size,
       options.sequence_length);
  return measured.size_bytes();
}

// What the kernels of a pass over it ask the stream for, a slot after the other.
int64_t workspace_bytes(const ModelConfig& config, const Transformer::Options& options) {
  using namespace kernels::cuda;
  if (options.device == Device::cpu) return 0;
  const int64_t sequences = options.micro_batch_size, length = options.sequence_length;
  const int64_t tokens = sequences * length;
  int64_t kernel = 0;
  if (options.training) {
    const bool gpt2 = config.family == Family::gpt2;
    const int64_t most_reduced = std::max(tokens, options.padded_size);
    const int64_t widest = std::max({config.heads().packed(), config.hidden_size, config.ffn_size});
    kernel = std::max({kernels::reduce_blocks(most_reduced) * int64_t{sizeof(double)},
                       norm_workspace_bytes(tokens, config.hidden_size, gpt2 ? 2 : 1),
                       gpt2 ? bias_gradient_workspace_bytes(tokens, widest) : 0,
                       embedding_workspace_bytes(tokens),
                       attention_workspace_bytes(sequences, config.num_heads, length)});
    if constexpr (kCudaIsBuilt) {
      if (config.dropout == 0) {
        kernel = std::max(kernel, cudnn_attention_workspace_bytes(
                                      {options.precision, sequences, length, config.heads()}));
      }
    }
  }
  const ClassifierChunk chunk(tokens, config.vocab_size, options.precision, options.training);
  return kernel + chunk.total_bytes() + kProductWorkspaceBytes;
}

// Tokens and targets of the largest micro-batch, where they are not the CPU's anyway.
Shape inputs_shape(const Transformer::Options& options) {
  const int64_t tokens = options.micro_batch_size * options.sequence_length;
  return {2, options.device == Device::cpu ? 0 : tokens};
}

}  // namespace

Transformer::Memory Transformer::planned_memory(const ModelConfig& config, const Options& asked) {
  const Options options = resolved(config, asked, ParameterTable(config).size());
  Memory memory;
  memory.weights = options.padded_size * size_bytes(options.precision);
  if (options.training) memory.gradients = options.padded_size * size_bytes(DType::fp32);
  memory.activations = arena_bytes(config, options);
  if (config.family == Family::llama) {
    memory.activations +=
        rope_table_shape(config, options.sequence_length).size() * size_bytes(DType::fp32);
  }
  memory.workspace = workspace_bytes(config, options);
  memory.inputs = inputs_shape(options).size() * size_bytes(DType::int32);
  return memory;
}

Transformer::Memory Transformer::Implementation::memory() const {
  return {.weights = weights_.size_bytes(),
          .gradients = gradients_.size_bytes(),
          .activations = arena_.size_bytes() + rope_table_.size_bytes(),
          .workspace = workspace_bytes(config_, options_),
          .inputs = inputs_.size_bytes()};
}

Transformer::Implementation::Implementation(const ModelConfig& config, const Options& options,
                                            const ModelParameters* parameters)
    : config_(config),
      table_(config),
      options_(resolved(config, options, table_.size())),
      weights_(parameters == nullptr
                   ? Buffer::for_peers(options_.precision, {options_.padded_size}, options_.device)
                   : Buffer()),
      gradients_(options_.training
                     ? Buffer::for_peers(DType::fp32, {options_.padded_size}, options_.device)
                     : Buffer()),
      keep_(keep_of(options_)),
      inputs_(DType::int32, inputs_shape(options_), options_.device),
      stream_(options_.device) {
  CHECK(parameters == nullptr || !options_.training);
  parameters_ = parameters == nullptr
                    ? parameter_views(table_, weights_.tensor().slice(0, table_.size()))
                    : *parameters;
  if (options_.training) {
    parameter_gradients_ = parameter_views(table_, gradients_.tensor().slice(0, table_.size()));
  }
  if (config_.family == Family::llama) {
    rope_table_ = rope_table(config_, options_.sequence_length, options_.device);
  }
  arena_ = Buffer(arena_bytes(config_, options_), options_.device);
}

// Checks the batch, and lays the activations out for its shape.
void Transformer::Implementation::prepare(const Batch& batch) {
  CHECK(batch.tokens.shape().rank() == 2 && batch.tokens.shape() == batch.targets.shape(),
        "tokens {}, targets {}", batch.tokens.shape().to_string(),
        batch.targets.shape().to_string());
  const int64_t sequences = batch.tokens.dim(0), length = batch.tokens.dim(1);
  CHECK(1 <= sequences && sequences <= options_.micro_batch_size && 1 <= length &&
            length <= options_.sequence_length,
        "a batch of {} where {} sequences of {} fit", batch.tokens.shape().to_string(),
        options_.micro_batch_size, options_.sequence_length);
  backward_is_due_ = false;
  if (sequences != planned_sequences_ || length != planned_length_) {
    Arena arena(arena_);
    plan(activations_, arena, config_, options_.precision, keep_, sequences, length);
    planned_sequences_ = sequences;
    planned_length_ = length;
  }
}

// Each dropout of the model has numbers of its own: site 0 is the embedding's, then three a layer.
kernels::DropoutMask Transformer::Implementation::mask(const Batch& batch, float probability,
                                                       int64_t site) const {
  return {.probability = probability,
          .seed = options_.seed,
          .step = batch.step,
          .first_sequence = batch.first_sequence,
          .site = static_cast<uint32_t>(site)};
}

kernels::DropoutMask Transformer::Implementation::embedding_dropout(const Batch& batch,
                                                                    float probability) const {
  return mask(batch, probability, 0);
}

LayerDropout Transformer::Implementation::layer_dropout(const Batch& batch, float probability,
                                                        int64_t layer) const {
  const int64_t first = 1 + 3 * layer;
  return {.attention = mask(batch, probability, first),
          .attention_branch = mask(batch, probability, first + 1),
          .ffn_branch = mask(batch, probability, first + 2)};
}

void Transformer::Implementation::run_layer(int64_t layer, const Batch& batch, float dropout) {
  const ProfileScope scope(Span::Kind::stage, "layer", layer + 1);
  layer_forward(config_, parameters_.layers[layer], activations_.layers[layer],
                rope_table_.tensor(), layer_dropout(batch, dropout, layer), stream_);
}

// From tokens to the input of the classifier.
void Transformer::Implementation::run_layers(const Batch& batch, float dropout) {
  CHECK(batch.tokens.device() == options_.device && batch.targets.device() == options_.device);
  prepare(batch);
  const Tensor& embedded = activations_.layers.front().input;
  kernels::embedding_forward(embedded, batch.tokens, parameters_.tokens, parameters_.positions, 0,
                             stream_);
  if (dropout > 0) {
    kernels::dropout(embedded, embedded, embedding_dropout(batch, dropout), stream_);
  }
  for (int64_t layer = 0; layer < config_.num_layers; layer++) run_layer(layer, batch, dropout);
  norm_forward(config_, activations_.final_normed, activations_.final_mean,
               activations_.final_scale, activations_.final_input(), {}, parameters_.final_gain,
               parameters_.final_bias, stream_);
}

void Transformer::Implementation::forward(const Batch& batch, const float* gradient_scale,
                                          double* loss_sum) {
  CHECK(options_.training);
  const ProfileScope scope(Span::Kind::stage, "forward");
  run_layers(batch, config_.dropout);
  {
    const ProfileScope classifier(Span::Kind::stage, "classifier");
    kernels::classifier_loss_and_gradient(
        activations_.losses, activations_.gradients.branch, parameter_gradients_.classifier,
        activations_.final_normed, parameters_.classifier, batch.targets, gradient_scale, stream_);
  }
  kernels::add_sum(loss_sum, activations_.losses, stream_);
  batch_ = batch;
  backward_is_due_ = true;
}

void Transformer::Implementation::backward(const GroupCallback& group_ready) {
  CHECK(backward_is_due_, "backward needs a forward of its own");
  backward_is_due_ = false;
  const ProfileScope scope(Span::Kind::stage, "backward");
  const auto ready = [&](int64_t group) {
    if (group_ready) group_ready(static_cast<int>(group));
  };
  const Activations& a = activations_;
  const LayerGradients& d = a.gradients;

  kernels::set_zero(d.residual, stream_);
  norm_backward(config_, d.residual, parameter_gradients_.final_gain,
                parameter_gradients_.final_bias, d.branch, a.final_input(), parameters_.final_gain,
                a.final_mean, a.final_scale, stream_);
  ready(config_.num_layers + 1);

  for (int64_t layer = config_.num_layers - 1; layer >= 0; layer--) {
    // The last layer's activations are still those of forward.
    const bool redo = keep_ == Keep::layer_inputs && layer < config_.num_layers - 1;
    if (redo) run_layer(layer, batch_, config_.dropout);
    const ProfileScope of_layer(Span::Kind::stage, "layer", layer + 1);
    layer_backward(config_, parameters_.layers[layer], parameter_gradients_.layers[layer],
                   a.layers[layer], d, rope_table_.tensor(),
                   layer_dropout(batch_, config_.dropout, layer), stream_);
    ready(layer + 1);
  }

  if (config_.dropout > 0) {
    kernels::dropout(d.residual, d.residual, embedding_dropout(batch_, config_.dropout), stream_);
  }
  kernels::embedding_backward(parameter_gradients_.tokens, parameter_gradients_.positions,
                              d.residual, batch_.tokens, stream_);
  ready(0);
}

void Transformer::Implementation::losses(const Batch& host_batch, const Tensor& losses) {
  Batch batch = host_batch;
  if (options_.device != Device::cpu) {
    const Shape shape = batch.tokens.shape();
    const Tensor there = inputs_.tensor(DType::int32, {2, shape.size()});
    batch.tokens = there.slice(0, 1).reshape(shape);
    batch.targets = there.slice(1, 2).reshape(shape);
    copy(batch.tokens, host_batch.tokens, stream_);
    copy(batch.targets, host_batch.targets, stream_);
  }
  run_layers(batch, 0);
  kernels::classifier_loss(activations_.losses, activations_.final_normed, parameters_.classifier,
                           batch.targets, stream_);
  copy(losses.reshape({losses.size()}), activations_.losses, stream_);
  stream_.synchronize();
}

Transformer::Transformer(const ModelConfig& config, const Options& options)
    : implementation_(std::make_unique<Implementation>(config, options, nullptr)) {}
Transformer::Transformer(const ModelConfig& config, const Options& options,
                         const ModelParameters& parameters)
    : implementation_(std::make_unique<Implementation>(config, options, &parameters)) {}
Transformer::~Transformer() = default;

const ModelConfig& Transformer::config() const { return implementation_->config_; }
const Transformer::Options& Transformer::options() const { return implementation_->options_; }
const ParameterTable& Transformer::table() const { return implementation_->table_; }
Stream& Transformer::stream() { return implementation_->stream_; }
Tensor Transformer::weights() const { return padded_weights().slice(0, table().size()); }
Tensor Transformer::gradients() const { return padded_gradients().slice(0, table().size()); }
Tensor Transformer::padded_weights() const { return implementation_->weights_.tensor(); }

Tensor Transformer::padded_gradients() const {
  CHECK(implementation_->options_.training);
  return implementation_->gradients_.tensor();
}

void Transformer::zero_gradients() { kernels::set_zero(gradients(), implementation_->stream_); }

void Transformer::forward(const Batch& batch, const float* gradient_scale, double* loss_sum) {
  implementation_->forward(batch, gradient_scale, loss_sum);
}

void Transformer::backward(const GroupCallback& group_ready) {
  implementation_->backward(group_ready);
}

void Transformer::losses(const Batch& batch, const Tensor& losses) {
  implementation_->losses(batch, losses);
}

Transformer::Memory Transformer::memory() const { return implementation_->memory(); }

}  // namespace lockstep
