#include "inference/batch.h"

#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "core/thread_pool.h"
#include "tests/inference/golden.h"

// Requests that run together.
namespace lockstep {
namespace {

using testing::Golden;
using ::testing::HasSubstr;
using testing::TemporaryFolder;
using testing::with_context;

class BatchOf : public ::testing::TestWithParam<const char*> {
 protected:
  void TearDown() override { set_num_threads(1); }

  // Prompts of 1 to 36 bytes, many with the same beginning, each with options of its own.
  std::vector<GenerationRequest> requests() const {
    const std::string beginning = "It was the best of times, it was the";
    std::mt19937 random(7);
    std::vector<GenerationRequest> all;
    for (size_t i = 0; i < 50; i++) {
      GenerationRequest& request = all.emplace_back();
      request.prompt = beginning.substr(0, 1 + random() % 36);
      if (i % 3 == 0) request.prompt.back() = static_cast<char>('a' + random() % 26);
      request.stream_index = i;
      SamplingOptions& o = request.options;
      o.max_tokens = 1 + static_cast<int64_t>(random() % 20);
      o.seed = 3;
      o.greedy = i % 4 == 0;
      if (!o.greedy) o.temperature = 2, o.top_k = i % 2 == 0 ? 40 : 0;
      if (i % 5 == 0) o.stop = {"e"};
      if (i % 7 == 0) o.logprobs = 2, o.repetition_penalty = 1.3;
    }
    return all;
  }
  // In the order of the requests.
  std::vector<Completion> run(std::span<const GenerationRequest> requests,
                              const BatchLimits& limits = {}) {
    std::vector<Completion> all(requests.size());
    std::vector<int> times(requests.size());
    generator_.generate(requests, limits, [&](size_t i, Completion completion) {
      all[i] = std::move(completion);
      times[i]++;
    });
    EXPECT_THAT(times, ::testing::Each(1));
    return all;
  }

  TemporaryFolder folder_;
  Golden golden_{GetParam()};
  Generator generator_{golden_.checkpoint(folder_ / "run"), DType::fp32};
  // Of a page of 16 tokens.
  int64_t page_bytes() const { return 16 * KvPages::bytes_a_token(golden_.config, DType::fp32); }
};

std::string described(const Completion& c) {
  std::string text = fmt::format("{} '{}' {}", c.tokens, c.text, name(c.finish_reason));
  for (const PlaceLogprobs& place : c.logprobs) text += fmt::format(" {}", place.chosen.logprob);
  return text;
}

TEST_P(BatchOf, ARequestsBitsAreItsOwn) {
  const std::vector<GenerationRequest> all = requests();
  std::vector<std::string> alone;
  for (const GenerationRequest& request : all) {
    alone.push_back(described(run(std::span(&request, 1)).front()));
  }
  std::mt19937 random(1);
  int64_t shared = 0;
  for (int turn = 0; turn < 12; turn++) {
    set_num_threads(turn % 3 + 1);
    std::vector<size_t> order(all.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    order.resize(5 + random() % 46);
    std::vector<GenerationRequest> some;
    std::vector<std::string> streamed(order.size());
    for (size_t n = 0; n < order.size(); n++) {
      some.push_back(all[order[n]]);
      some.back().on_text = [&, n](std::string_view piece) { streamed[n] += piece; };
    }
    const int64_t batch_size = turn == 0 ? 50 : 1 + static_cast<int64_t>(random() % 16);
    const int64_t pages = 3 + static_cast<int64_t>(random() % 12);
    const std::vector<Completion> got = run(some, {batch_size, pages * page_bytes()});
    for (size_t n = 0; n < order.size(); n++) {
      ASSERT_EQ(described(got[n]), alone[order[n]]) << "turn " << turn << ", place " << n;
      EXPECT_EQ(streamed[n], got[n].text);
      shared += got[n].statistics.shared_tokens;
    }
  }
  EXPECT_GT(shared, 500);
}

// A place is taken as soon as it is free: three short requests beside a long one end before it.
TEST_P(BatchOf, APlaceGoesToTheNextAtOnce) {
  std::vector<GenerationRequest> requests(4, {.prompt = "x", .options = {}});
  for (GenerationRequest& request : requests) {
    request.options.greedy = true;
    request.options.forbid = {256};
    request.options.max_tokens = 4;
  }
  requests[0].options.max_tokens = 11;
  std::vector<size_t> order;
  generator_.generate(requests, {.batch_size = 2},
                      [&](size_t i, const Completion&) { order.push_back(i); });
  // One token at its admission, one a pass: 1 ends in pass 3, 2 in pass 6, 3 in pass 9, 0 in 10.
  EXPECT_THAT(order, ::testing::ElementsAre(1, 2, 3, 0));
}

// Those that `next` names, in its order; it is asked only when there is a place, so that others who
// take from the same source are not held up.
TEST_P(BatchOf, TakesWhatIsNextWhenThereIsAPlace) {
  const std::vector<GenerationRequest> all = requests();
  const std::vector<Completion> want = run(all);
  const std::vector<size_t> source = {7, 31, 2, 40, 11};
  std::vector<size_t> done;
  size_t asked = 0;
  const auto next = [&]() -> std::optional<size_t> {
    EXPECT_LT(asked - done.size(), 2u) << "both places are taken";
    const size_t place = asked++;
    return place < source.size() ? std::optional(source[place]) : std::nullopt;
  };
  generator_.generate(
      all, {.batch_size = 2},
      [&](size_t i, const Completion& completion) {
        EXPECT_EQ(described(completion), described(want[i]));
        done.push_back(i);
      },
      nullptr, next);
  EXPECT_THAT(done, ::testing::UnorderedElementsAreArray(source));
  EXPECT_EQ(asked, source.size() + 1);
}

// With memory for two pages, requests that need two go one after the other.
TEST_P(BatchOf, WaitsForMemory) {
  std::vector<GenerationRequest> requests(5, {.prompt = "abcdefgh", .options = {}});
  for (GenerationRequest& request : requests) {
    request.options.greedy = true;
    request.options.max_tokens = 20;
  }
  const auto free = run(requests);
  const auto short_of_memory = run(requests, {.kv_cache_bytes = 3 * page_bytes()});
  for (size_t i = 0; i < requests.size(); i++) {
    EXPECT_EQ(described(short_of_memory[i]), described(free[i]));
    // Each had all passes to itself.
    const GenerationStatistics& s = short_of_memory[i].statistics;
    EXPECT_GT(s.passes_bytes, 4 * free[i].statistics.passes_bytes);
    EXPECT_EQ(s.kv_cache_bytes, 2 * page_bytes());
  }
}

TEST_P(BatchOf, RefusesWhatMemoryCanNeverHold) {
  std::vector<GenerationRequest> requests(3, {.prompt = "abcdefgh", .options = {}});
  requests[1].options.max_tokens = 27;
  requests[0].options.max_tokens = requests[2].options.max_tokens = 5;
  requests[0].on_text = [](std::string_view) { FAIL() << "nothing is computed"; };
  try {
    run(requests, {.kv_cache_bytes = 2 * page_bytes()});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("prompt 2: keys and values of 34 tokens need"));
    EXPECT_THAT(error.what(), HasSubstr("--kv-cache-memory is"));
  }
  requests[1].options.max_tokens = 25;  // 32 tokens: the last needs no place
  requests[0].on_text = nullptr;
  run(requests, {.kv_cache_bytes = 2 * page_bytes()});
}

TEST_P(BatchOf, NamesThePromptThatDoesNotDo) {
  std::vector<GenerationRequest> requests(3, {.prompt = "a", .options = {}});
  requests[2].prompt = std::string(49, 'x');
  try {
    run(requests);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("prompt 3: the prompt has 49 tokens"));
  }
}

TEST_P(BatchOf, EndsAllWhenInterrupted) {
  std::vector<GenerationRequest> requests(3, {.prompt = "abcdefgh", .options = {}});
  for (GenerationRequest& request : requests) request.options.forbid = {256};
  int asked = 0;
  std::vector<size_t> sizes;
  generator_.generate(
      requests, {.batch_size = 2},
      [&](size_t, const Completion& completion) {
        EXPECT_EQ(completion.finish_reason, FinishReason::interrupted);
        sizes.push_back(completion.tokens.size());
      },
      [&] { return asked++ == 5; });
  EXPECT_THAT(sizes, ::testing::UnorderedElementsAre(5, 5, 0));
}

// Prompts of more rows than a tile of products (64) and than are computed at once (128).
TEST_P(BatchOf, ALongPromptsBitsAreItsOwn) {
  std::mt19937 random(3);
  std::string beginning;
  for (int i = 0; i < 300; i++) beginning += static_cast<char>('a' + random() % 26);
  std::vector<GenerationRequest> all;
  for (const size_t size : {300, 1, 63, 64, 65, 290, 127, 128, 129, 20, 200, 257}) {
    GenerationRequest& request = all.emplace_back();
    request.prompt = beginning.substr(0, size);
    if (all.size() % 3 == 0) request.prompt.front() = 'A';
    request.stream_index = all.size();
    request.options.max_tokens = 2 + static_cast<int64_t>(random() % 8);
    request.options.temperature = 2;
    request.options.logprobs = 0;
  }
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    Golden golden = with_context(Golden{GetParam()}, 320);
    Generator generator(golden.checkpoint(folder_ / std::string(name(dtype))), dtype);
    std::vector<std::string> alone(all.size()), together(all.size());
    for (size_t i = 0; i < all.size(); i++) {
      generator.generate(std::span(&all[i], 1), {},
                         [&](size_t, const Completion& c) { alone[i] = described(c); });
    }
    for (const int64_t batch_size : {2, 5, 12}) {
      set_num_threads(static_cast<int>(batch_size % 3) + 1);
      // The longest needs 20 pages.
      const int64_t page_bytes = 16 * KvPages::bytes_a_token(golden.config, dtype);
      int64_t shared = 0;
      generator.generate(all, {batch_size, 10 * batch_size * page_bytes},
                         [&](size_t i, const Completion& c) {
                           together[i] = described(c);
                           shared += c.statistics.shared_tokens;
                         });
      EXPECT_EQ(together, alone) << name(dtype) << ", " << batch_size;
      EXPECT_GT(shared, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, BatchOf, ::testing::Values("gpt2", "llama"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace lockstep
