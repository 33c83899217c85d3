#include "launch/completions.h"

#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "kernels/machine.h"
#include "launch/text.h"

namespace lockstep::launch {
namespace {

using nlohmann::ordered_json;

double rate(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

double tokens_per_second(const Completion& completion) {
  return rate(static_cast<int64_t>(completion.tokens.size()), completion.seconds);
}

ordered_json to_json(const TokenLogprob& token, const Tokenizer& tokenizer) {
  return {{"token", token.token},
          {"text", tokenizer.token_bytes(token.token)},
          {"logprob", token.logprob}};
}

ordered_json to_json(const std::vector<PlaceLogprobs>& places, const Tokenizer& tokenizer) {
  ordered_json all = ordered_json::array();
  for (const PlaceLogprobs& place : places) {
    ordered_json object = to_json(place.chosen, tokenizer);
    object["top"] = ordered_json::array();
    for (const TokenLogprob& token : place.top) object["top"].push_back(to_json(token, tokenizer));
    all.push_back(object);
  }
  return all;
}

}  // namespace

std::string completion_json(const std::string& prompt, const Completion& completion,
                            const Tokenizer& tokenizer, bool with_rate) {
  ordered_json object = {{"prompt", prompt},
                         {"text", completion.text},
                         {"tokens", completion.tokens},
                         {"finish_reason", name(completion.finish_reason)}};
  if (with_rate) object["tokens_per_second"] = tokens_per_second(completion);
  if (!completion.logprobs.empty()) object["logprobs"] = to_json(completion.logprobs, tokenizer);
  if (const auto& draft = completion.statistics.draft) {
    object["draft"] = {{"proposed", draft->proposed}, {"accepted", draft->accepted}};
  }
  for (const ScoredText& beam : completion.beams) {
    object["beams"].push_back({{"text", beam.text},
                               {"tokens", beam.tokens},
                               {"finish_reason", name(beam.finish_reason)},
                               {"score", beam.score}});
  }
  // Bytes that are not UTF-8 become U+FFFD: JSON has no other way.
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

StatisticsPrinter::StatisticsPrinter(Device device)
    : memory_rate_(kernels::measured_memory_rate(device)) {}

void StatisticsPrinter::print(const Completion& completion) {
  const GenerationStatistics& s = completion.statistics;
  const auto line = [](const char* subject, const std::string& text) {
    fmt::print(stderr, "  {:<13}{}\n", subject, text);
  };
  const int64_t computed = s.prompt_tokens - s.shared_tokens;
  line("prompt",
       fmt::format("{}{} in {:.2f} ms, {:.1f} tokens/s", plural(s.prompt_tokens, "token"),
                   s.shared_tokens > 0 ? fmt::format(", {} of them shared,", s.shared_tokens) : "",
                   1e3 * s.prompt_seconds, rate(computed, s.prompt_seconds)));
  if (s.first_token_seconds > 0) {
    line("first token", fmt::format("after {:.2f} ms", 1e3 * s.first_token_seconds));
  }
  line("KV cache",
       fmt::format("{} for {}", size_text(s.kv_cache_bytes), plural(s.kv_cache_tokens, "token")));
  const int64_t tokens = s.passes_tokens;
  if (tokens == 0) return;
  line("then", fmt::format("{} in {:.2f} ms, {:.1f} tokens/s", plural(tokens, "token"),
                           1e3 * s.passes_seconds, rate(tokens, s.passes_seconds)));
  if (s.draft) {
    line("draft", fmt::format("{} of {} accepted ({:.1f} %), {:.2f} tokens a pass",
                              s.draft->accepted, plural(s.draft->proposed, "token"),
                              100 * rate(s.draft->accepted, static_cast<double>(s.draft->proposed)),
                              rate(tokens, static_cast<double>(s.passes))));
  }
  const double read = rate(s.passes_bytes, s.passes_seconds), share = read / memory_rate_;
  line("memory", fmt::format("{} a token, {:.2f} GB/s: {:.1f} % of the {:.2f} GB/s measured here{}",
                             size_text(s.passes_bytes / tokens), read / 1e9, 100 * share,
                             memory_rate_ / 1e9, share > 1 ? " (the caches hold much)" : ""));
}

void CompletionOutput::run(Generator& generator, std::vector<GenerationRequest> requests,
                           const BatchLimits& limits, const std::function<bool()>& interrupted) {
  requests_ = std::move(requests);
  pending_.assign(requests_.size(), {});
  shown_ = 0, begun_ = false;
  for (size_t i = 0; i < requests_.size() && format_ == OutputFormat::text; i++) {
    requests_[i].on_text = [this, i](std::string_view piece) {
      if (i == shown_) return show_text(piece);
      pending_[i].text += piece;
    };
  }
  const auto on_done = [this](size_t i, Completion completion) {
    pending_[i].completion = std::move(completion);
    if (i == shown_) show_ready();
  };
  generator.generate(requests_, limits, on_done, interrupted);
}

void CompletionOutput::show_text(std::string_view piece) {
  if (!begun_) {
    const bool terminal = isatty(STDOUT_FILENO) == 1;
    fmt::print("{}{}{}{}", shown_ > 0 ? "\n" : "", terminal ? "\x1b[1m" : "",
               requests_[shown_].prompt, terminal ? "\x1b[0m" : "");
  }
  begun_ = true;
  std::fwrite(piece.data(), 1, piece.size(), stdout);
  std::fflush(stdout);
}

// The request whose turn it is has ended: shows it to its end, and those after it as far as they
// have come.
void CompletionOutput::show_ready() {
  while (shown_ < pending_.size() && pending_[shown_].completion) {
    show_end(*pending_[shown_].completion);
    pending_[shown_] = {};
    shown_++;
    begun_ = false;
    if (shown_ < pending_.size() && !pending_[shown_].text.empty()) {
      show_text(pending_[shown_].text);
    }
  }
}

void CompletionOutput::show_end(const Completion& completion) {
  if (format_ == OutputFormat::json) {
    fmt::print("{}\n", completion_json(requests_[shown_].prompt, completion, tokenizer_, true));
    std::fflush(stdout);
  } else {
    show_text("\n");
    const std::vector<ScoredText>& beams = completion.beams;
    fmt::print(stderr, "[{} tokens, {:.1f} tokens/s, ended by {}{}]\n", completion.tokens.size(),
               tokens_per_second(completion), name(completion.finish_reason),
               beams.empty() ? "" : fmt::format(", score {:.4f}", beams.front().score));
    for (size_t n = 1; n < beams.size(); n++) {
      fmt::print("\n{}{}\n", requests_[shown_].prompt, beams[n].text);
      std::fflush(stdout);
      fmt::print(stderr, "[{} tokens, ended by {}, score {:.4f}]\n", beams[n].tokens.size(),
                 name(beams[n].finish_reason), beams[n].score);
    }
  }
  if (statistics_ != nullptr) statistics_->print(completion);
}

}  // namespace lockstep::launch
