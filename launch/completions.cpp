#include "launch/completions.h"

#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "launch/measure.h"
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

Completion show_completion(Generator& generator, const std::string& prompt,
                           const SamplingOptions& options, uint64_t stream_index,
                           const std::function<bool()>& interrupted) {
  bool begun = false;
  const auto show = [&](std::string_view piece) {
    if (!begun) {
      const bool terminal = isatty(STDOUT_FILENO) == 1;
      fmt::print("{}{}{}", terminal ? "\x1b[1m" : "", prompt, terminal ? "\x1b[0m" : "");
    }
    begun = true;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  const Completion completion =
      generator.generate(prompt, options, stream_index, show, interrupted);
  show("\n");
  fmt::print(stderr, "[{} tokens, {:.1f} tokens/s, ended by {}]\n", completion.tokens.size(),
             tokens_per_second(completion), name(completion.finish_reason));
  return completion;
}

void print_json(const std::string& prompt, const Completion& completion,
                const Tokenizer& tokenizer) {
  ordered_json object = {{"prompt", prompt},
                         {"text", completion.text},
                         {"tokens", completion.tokens},
                         {"finish_reason", name(completion.finish_reason)},
                         {"tokens_per_second", tokens_per_second(completion)}};
  if (!completion.logprobs.empty()) object["logprobs"] = to_json(completion.logprobs, tokenizer);
  // Bytes that are not UTF-8 become U+FFFD: JSON has no other way.
  fmt::print("{}\n", object.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
  std::fflush(stdout);
}

void StatisticsPrinter::print(const Completion& completion) {
  const GenerationStatistics& s = completion.statistics;
  const auto line = [](const char* subject, const std::string& text) {
    fmt::print(stderr, "  {:<13}{}\n", subject, text);
  };
  line("prompt", fmt::format("{} in {:.2f} ms, {:.1f} tokens/s", plural(s.prompt_tokens, "token"),
                             1e3 * s.prompt_seconds, rate(s.prompt_tokens, s.prompt_seconds)));
  if (s.first_token_seconds > 0) {
    line("first token", fmt::format("after {:.2f} ms", 1e3 * s.first_token_seconds));
  }
  line("KV cache",
       fmt::format("{} for {}", size_text(s.kv_cache_bytes), plural(s.kv_cache_tokens, "token")));
  if (s.passes == 0) return;
  line("then", fmt::format("{} in {:.2f} ms, {:.1f} tokens/s", plural(s.passes, "token"),
                           1e3 * s.passes_seconds, rate(s.passes, s.passes_seconds)));
  if (!memory_rate_) memory_rate_ = memory_rate(device_);
  const double read = rate(s.passes_bytes, s.passes_seconds), share = read / *memory_rate_;
  line("memory", fmt::format("{} a token, {:.2f} GB/s: {:.1f} % of the {:.2f} GB/s measured here{}",
                             size_text(s.passes_bytes / s.passes), read / 1e9, 100 * share,
                             *memory_rate_ / 1e9, share > 1 ? " (the caches hold much)" : ""));
}

}  // namespace lockstep::launch
