#include "model/decoder.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/attention.h"
#include "kernels/classifier.h"
#include "kernels/embedding.h"
#include "kernels/reduce.h"
#include "kernels/rope.h"
#include "model/layer.h"

namespace lockstep {

Decoder::Decoder(const ModelConfig& config, const Tensor& weights, int64_t chunk)
    : Decoder(config, parameter_views(ParameterTable(config), weights), chunk) {}

Decoder::Decoder(const ModelConfig& config, const ModelParameters& parameters, int64_t chunk)
    : config_(config),
      parameters_(parameters),
      dtype_(parameters.tokens.dtype()),
      chunk_(std::min(chunk, config.context_length)),
      tokens_(DType::int32, {chunk_}, parameters.tokens.device()),
      stream_(parameters.tokens.device()) {
  CHECK(chunk >= 1);
  if (config_.family == Family::llama) {
    rope_table_ = rope_table(config_, config_.context_length, stream_.device());
  }
  Arena measured;
  plan(activations_, measured, config_, dtype_, Keep::nothing, 1, chunk_);
  arena_ = Buffer(measured.size_bytes(), stream_.device());
}

// Fills activations_.final_normed (1, n, C), the states of the n tokens of all pieces.
void Decoder::forward_pieces(std::span<const Piece> pieces, kernels::Rows rows) {
  int64_t count = 0;
  std::vector<std::vector<void*>> pages;
  std::vector<kernels::CachedSequence> sequences;
  kernels::PagePlace place;
  for (const Piece& piece : pieces) {
    const KvSequence& sequence = *piece.of->sequence;
    std::vector<void*>& own = pages.emplace_back();
    for (const auto& page : sequence.pages_) own.push_back(page->memory.tensor().data());
    sequences.push_back({piece.end - piece.begin, piece.position, own});
    place.page_size = sequence.pool_->page_size();
    count += piece.end - piece.begin;
  }
  Arena arena(arena_);
  plan(activations_, arena, config_, dtype_, Keep::nothing, 1, count);
  // Calls f(first row, rows, piece): what depends on a token's position goes piece by piece.
  const auto for_each_piece = [&](auto&& f) {
    int64_t row = 0;
    for (const Piece& piece : pieces) {
      f(row, piece.end - piece.begin, piece);
      row += piece.end - piece.begin;
    }
  };
  const auto rows_of = [&](const Tensor& all, int64_t row, int64_t n) {
    return all.reshape({count, all.cols()}).slice(row, row + n).reshape({1, n, all.cols()});
  };

  const Tensor input = activations_.layers.front().input;
  for_each_piece([&](int64_t row, int64_t n, const Piece& piece) {
    const Tensor tokens = tokens_.tensor().slice(row, row + n);
    // Tensors are views that may be written; this one is only read.
    copy(tokens, Tensor(const_cast<int32_t*>(&piece.of->tokens[piece.begin]), DType::int32, {n}),
         stream_);
    kernels::embedding_forward(rows_of(input, row, n), tokens.reshape({1, n}), parameters_.tokens,
                               parameters_.positions, piece.position, stream_);
  });
  for (place.layer = 0; place.layer < config_.num_layers; place.layer++) {
    LayerActivations& a = activations_.layers[place.layer];
    const LayerParameters& weights = parameters_.layers[place.layer];
    a.rows = rows;
    before_attention(config_, weights, a, Tensor(), 0, stream_);
    for_each_piece([&](int64_t row, int64_t n, const Piece& piece) {
      if (config_.family != Family::llama) return;
      kernels::rope_forward(rows_of(a.qkv, row, n), rope_table_.tensor(), config_.heads(),
                            piece.position, stream_);
    });
    kernels::attention_with_cache(a.attended, a.qkv, config_.heads(), sequences, place, rows,
                                  stream_);
    after_attention(config_, weights, a, LayerDropout(), stream_);
  }
  norm_forward(config_, activations_.final_normed, activations_.final_mean,
               activations_.final_scale, activations_.final_input(), {}, parameters_.final_gain,
               parameters_.final_bias, stream_);
}

void Decoder::forward(std::span<const NewTokens> batch, kernels::Rows rows, const Tensor& hidden) {
  int64_t all_wanted = 0;
  for (const NewTokens& n : batch) {
    const auto count = static_cast<int64_t>(n.tokens.size());
    const int64_t room = config_.context_length - n.sequence->length();
    CHECK(1 <= count && count <= room, "{} tokens where {} fit", count, room);
    CHECK(0 <= n.wanted && n.wanted <= count);
    all_wanted += n.wanted;
  }
  CHECK(hidden.rows() == all_wanted && hidden.cols() == config_.hidden_size);
  for (const NewTokens& n : batch) {
    n.sequence->reserve(static_cast<int64_t>(n.tokens.size()), stream_);
  }

  std::vector<Piece> pieces;
  int64_t rows_of_pieces = 0, row_of_hidden = 0;
  const auto compute = [&] {
    forward_pieces(pieces, rows);
    const Tensor states = activations_.final_normed.reshape({rows_of_pieces, config_.hidden_size});
    int64_t row = 0;
    for (const Piece& piece : pieces) {
      const int64_t first_wanted = static_cast<int64_t>(piece.of->tokens.size()) - piece.of->wanted;
      const int64_t skipped =
          std::clamp(first_wanted - piece.begin, int64_t{0}, piece.end - piece.begin);
      const int64_t n = piece.end - piece.begin - skipped;
      if (n > 0) {
        kernels::cast(hidden.slice(row_of_hidden, row_of_hidden + n),
                      states.slice(row + skipped, row + skipped + n), stream_);
      }
      row_of_hidden += n;
      row += piece.end - piece.begin;
    }
    pieces.clear();
    rows_of_pieces = 0;
  };
  for (const NewTokens& n : batch) {
    const auto count = static_cast<int64_t>(n.tokens.size());
    for (int64_t begin = 0; begin < count;) {
      const int64_t end = std::min(count, begin + chunk_ - rows_of_pieces);
      pieces.push_back({&n, begin, end, n.sequence->length() + begin});
      rows_of_pieces += end - begin;
      begin = end;
      if (rows_of_pieces == chunk_) compute();
    }
  }
  if (!pieces.empty()) compute();
  for (const NewTokens& n : batch) n.sequence->length_ += static_cast<int64_t>(n.tokens.size());
}

void Decoder::logits(const Tensor& logits, const Tensor& hidden) {
  if (stream_.device() == Device::cpu) {
    return kernels::classifier_logits(logits, hidden, parameters_.classifier, stream_);
  }
  if (logits_.size_bytes() < logits.size_bytes()) {
    logits_ = Buffer(DType::fp32, logits.shape(), stream_.device());
  }
  const Tensor there = logits_.tensor(DType::fp32, logits.shape());
  kernels::classifier_logits(there, hidden, parameters_.classifier, stream_);
  copy(logits, there, stream_);
  stream_.synchronize();
}

}  // namespace lockstep
