#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "data/tokenizer.h"
#include "inference/sampling_options.h"
#include "launch/options.h"

// What generate is asked for: prompts, each with the options of its own.
namespace lockstep::launch {

// Options as they are typed: tokens are still by name, because which there are is the model's to
// say. A name is an id (464), or a text that is one token ( the); a text between double quotes is
// always a text ("5").
struct RequestOptions {
  SamplingOptions sampling;  // without the tokens below
  std::vector<std::pair<std::string, double>> logit_bias;
  std::vector<std::string> force_first, forbid, forbid_first;
};

struct Request {
  std::string prompt;
  RequestOptions options;
  // Keys the random numbers beside the seed: the prompt's place, or 0 when it has a seed of its
  // own, so that its text does not depend on its place.
  uint64_t stream_index = 0;
  std::string origin;  // "prompts.jsonl:3: " where options stand there too, to precede an error
};

// Adds the options, under captions of their own, but `logprobs`, which belongs to the output. They
// take any number: `validate` refuses those out of range.
void add_request_options(OptionTable& table, RequestOptions& options);
void add_logprobs_option(OptionTable& table, RequestOptions& options);

// All of them by name, as text: the same for requests of the same options alone.
std::vector<std::pair<std::string, std::string>> values(RequestOptions options);

// One prompt a line; in a file of JSON lines (.jsonl, .ndjson) an object a line, {"prompt": TEXT,
// NAME: VALUE...}, with the options of this prompt by their names, "top_k" for --top-k, which go
// before `defaults`. Empty lines count for nothing. The first has the place `first_place`. Throws
// DataError for a file that cannot be read, holds no prompt or is not JSON, UsageError for options
// that do not do, naming file and line.
std::vector<Request> read_requests(const std::filesystem::path& file,
                                   const RequestOptions& defaults, uint64_t first_place);

// With each token's id. Throws UsageError for a name that is not one token of the tokenizer.
SamplingOptions resolve(const Request& request, const Tokenizer& tokenizer);

}  // namespace lockstep::launch
