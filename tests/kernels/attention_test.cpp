#include "kernels/attention.h"

#include "tests/kernels/testing.h"

namespace lockstep::kernels::tests {
namespace {

struct AttentionSize {
  int64_t sequences, tokens, heads, kv_heads, head_dim;
  Heads of() const { return {heads, kv_heads, head_dim}; }
  int64_t width() const { return heads * head_dim; }
  int64_t packed() const { return (heads + 2 * kv_heads) * head_dim; }
};
void PrintTo(const AttentionSize& s, std::ostream* out) {
  *out << "B" << s.sequences << " T" << s.tokens << " H" << s.heads << " K" << s.kv_heads << " D"
       << s.head_dim;
}

// Tails of every tile (64 queries, 64 and 256 keys, 512 queries a task), odd heads, groups.
const AttentionSize kAttentionSizes[] = {{1, 1, 1, 1, 1},    {2, 3, 2, 2, 8},    {1, 65, 3, 3, 20},
                                         {2, 64, 4, 2, 16},  {1, 70, 4, 1, 7},   {1, 257, 2, 1, 64},
                                         {1, 130, 1, 1, 80}, {1, 66, 1, 1, 128}, {1, 520, 2, 2, 4},
                                         {2, 0, 2, 1, 4},    {0, 5, 2, 1, 4}};

const uint64_t kMaskStep = 6;

DropoutMask some_mask(float probability) {
  return {
      .probability = probability, .seed = 5, .step = &kMaskStep, .first_sequence = 7, .site = 8};
}

template <class T>
struct Case {
  AttentionSize size;
  DropoutMask mask;
  std::vector<T> qkv, dqkv, y, dy;
  std::vector<float> lse;

  explicit Case(AttentionSize s, float dropout = 0)
      : size(s),
        mask(some_mask(dropout)),
        dqkv(s.sequences * s.tokens * s.packed(), from_float<T>(9)),
        y(s.sequences * s.tokens * s.width(), from_float<T>(9)),
        lse(s.sequences * s.tokens * s.heads) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < dqkv.size(); i++) qkv.push_back(from_float<T>(1.5f * normal(random)));
    for (size_t i = 0; i < y.size(); i++) dy.push_back(from_float<T>(normal(random)));
  }
  Tensor qkvs() { return tensor(qkv, {size.sequences, size.tokens, size.packed()}); }
  Tensor outputs(std::vector<T>& v) {
    return tensor(v, {size.sequences, size.tokens, size.width()});
  }
  Tensor lses() { return tensor(lse, {size.sequences, size.heads, size.tokens}); }
  void forward() {
    Stream stream;
    attention_forward(outputs(y), lses(), qkvs(), size.of(), mask, stream);
  }
  void backward() {
    Stream stream;
    attention_backward(tensor(dqkv, {size.sequences, size.tokens, size.packed()}), outputs(dy),
                       outputs(y), lses(), qkvs(), size.of(), mask, stream);
  }
};

// The definition, in float64, with bounds of what rounding to T (unit roundoff u) may add.
struct Reference {
  AttentionSize size;
  DropoutMask mask;
  double unit;
  std::vector<double> qkv, dy, y, lse, dqkv, y_error, dqkv_error;

  template <class T>
  explicit Reference(const Case<T>& c, double unit_roundoff = 0)
      : size(c.size), mask(c.mask), unit(unit_roundoff) {
    for (const T& v : c.qkv) qkv.push_back(to_float(v));
    for (const T& v : c.dy) dy.push_back(to_float(v));
    y.resize(c.y.size()), lse.resize(c.lse.size()), dqkv.resize(c.dqkv.size());
    y_error = y, dqkv_error = dqkv;
  }

  double keep(int64_t b, int64_t h, int64_t t, int64_t u) const {
    if (!mask.active()) return 1;
    const int64_t place = (h * size.tokens + t) * size.tokens + u;
    const uint32_t word = mask.words(mask.key(), static_cast<uint32_t>(b), place / 4)[place % 4];
    return word >= mask.threshold() ? 1 / (1 - double{mask.probability}) : 0;
  }
  // Index of component 0 of query head h, or of what it reads, of token t of sequence b.
  int64_t q(int64_t b, int64_t t, int64_t h) const {
    return (b * size.tokens + t) * size.packed() + h * size.head_dim;
  }
  int64_t k(int64_t b, int64_t t, int64_t h) const {
    return q(b, t, size.heads + h / (size.heads / size.kv_heads));
  }
  int64_t v(int64_t b, int64_t t, int64_t h) const {
    return k(b, t, h) + size.kv_heads * size.head_dim;
  }
  double dot(const std::vector<double>& a, int64_t i, const std::vector<double>& b,
             int64_t j) const {
    double sum = 0;
    for (int64_t d = 0; d < size.head_dim; d++) sum += a[i + d] * b[j + d];
    return sum;
  }

  void run() {
    for (int64_t b = 0; b < size.sequences; b++) {
      for (int64_t h = 0; h < size.heads; h++) {
        for (int64_t t = 0; t < size.tokens; t++) query(b, h, t);
      }
    }
  }

  void query(int64_t b, int64_t h, int64_t t) {
    const double scale = 1 / std::sqrt(static_cast<double>(size.head_dim));
    const int64_t out = ((b * size.tokens + t) * size.heads + h) * size.head_dim;
    std::vector<double> p;
    double sum = 0;
    for (int64_t u = 0; u <= t; u++) {
      p.push_back(std::exp(scale * dot(qkv, q(b, t, h), qkv, k(b, u, h))));
      sum += p.back();
    }
    lse[(b * size.heads + h) * size.tokens + t] = std::log(sum);
    for (int64_t u = 0; u <= t; u++) {
      p[u] /= sum;
      for (int64_t d = 0; d < size.head_dim; d++) {
        const double term = p[u] * keep(b, h, t, u) * qkv[v(b, u, h) + d];
        y[out + d] += term;
        y_error[out + d] += unit * std::abs(term);  // p is rounded
      }
    }
    double delta_error = 0;  // of dy . y, with y rounded
    for (int64_t d = 0; d < size.head_dim; d++) {
      y_error[out + d] += unit * std::abs(y[out + d]);
      delta_error += std::abs(dy[out + d]) * y_error[out + d];
    }
    const double delta = dot(dy, out, y, out);
    for (int64_t u = 0; u <= t; u++) {
      const double f = keep(b, h, t, u);
      const double ds = p[u] * (f * dot(dy, out, qkv, v(b, u, h)) - delta);
      const double ds_error = unit * std::abs(ds) + p[u] * delta_error;
      for (int64_t d = 0; d < size.head_dim; d++) {
        add(q(b, t, h) + d, scale * ds * qkv[k(b, u, h) + d],
            scale * ds_error * std::abs(qkv[k(b, u, h) + d]));
        add(k(b, u, h) + d, scale * ds * qkv[q(b, t, h) + d],
            scale * ds_error * std::abs(qkv[q(b, t, h) + d]));
        add(v(b, u, h) + d, p[u] * f * dy[out + d], unit * std::abs(p[u] * f * dy[out + d]));
      }
    }
  }
  void add(int64_t i, double term, double error) {
    dqkv[i] += term;
    dqkv_error[i] += error;
  }
};

// fp32's own is part of kFp32Error.
template <class T>
constexpr double kUnit = sizeof(T) == 4 ? 0 : kStorageRounding<T>;

template <class T>
class Attention : public testing::Test {
 protected:
  void TearDown() override { set_num_threads(1); }
};
TYPED_TEST_SUITE(Attention, FloatTypes);

// Scores are sums of up to 128 products in fp32, of absolute sum below 128 * 1.5^2 / sqrt(128):
// wrong by at most 1e-4 * 2^-3, in practice by 1e-6; exponentials and sums add as much, relative.
// Values and gradients are a few units, sums of hundreds of terms: 5e-5 in all; rounding to T is
// bounded by the reference.
constexpr double kFp32Error = 5e-5;

TYPED_TEST(Attention, IsTheDefinition) {
  using T = TypeParam;
  set_num_threads(2);
  const double u = kUnit<T>;
  for (const AttentionSize s : kAttentionSizes) {
    for (const float dropout : {0.0f, 0.25f}) {
      SCOPED_TRACE(testing::PrintToString(s) + " dropout " + std::to_string(dropout));
      Case<T> test(s, dropout);
      test.forward(), test.backward();
      Reference want(test, u);
      want.run();
      for (size_t i = 0; i < want.lse.size(); i++) ASSERT_NEAR(test.lse[i], want.lse[i], 1e-5) << i;
      for (size_t i = 0; i < want.y.size(); i++) {
        ASSERT_NEAR(to_float(test.y[i]), want.y[i], kFp32Error + want.y_error[i]) << i;
      }
      for (size_t i = 0; i < want.dqkv.size(); i++) {
        ASSERT_NEAR(to_float(test.dqkv[i]), want.dqkv[i],
                    kFp32Error + want.dqkv_error[i] + u * std::abs(want.dqkv[i]))
            << i;
      }
    }
  }
}

// Central differences of the float64 definition: their error, O(h^2) = 1e-8, is below fp32's.
TEST(AttentionBackward, IsTheDerivativeOfTheDefinition) {
  Case<float> test({1, 4, 2, 1, 3}, 0.25f);
  test.forward(), test.backward();
  constexpr double kStep = 1e-4;
  const auto loss = [&](size_t i, double shift) {
    Reference shifted(test);
    shifted.qkv[i] += shift;
    shifted.run();
    double sum = 0;
    for (size_t j = 0; j < shifted.y.size(); j++) sum += shifted.y[j] * shifted.dy[j];
    return sum;
  };
  for (size_t i = 0; i < test.qkv.size(); i++) {
    EXPECT_NEAR(test.dqkv[i], (loss(i, kStep) - loss(i, -kStep)) / (2 * kStep), 1e-5) << i;
  }
}

TYPED_TEST(Attention, BitsDoNotDependOnThreads) {
  for (const AttentionSize s : {AttentionSize{2, 90, 4, 2, 16}, AttentionSize{1, 600, 3, 3, 8}}) {
    expect_same_bits_for_any_threads([&] {
      Case<TypeParam> test(s, 0.1f);
      test.forward(), test.backward();
      return bytes(test.y) + bytes(test.lse) + bytes(test.dqkv);
    });
  }
}

// The second of two sequences, alone, gives the bits that it has beside the first.
TYPED_TEST(Attention, SequencesDoNotDependOnEachOther) {
  Case<TypeParam> both({2, 75, 4, 2, 16}, 0.1f), second({1, 75, 4, 2, 16}, 0.1f);
  second.qkv.assign(both.qkv.end() - static_cast<int64_t>(second.qkv.size()), both.qkv.end());
  second.dy.assign(both.dy.end() - static_cast<int64_t>(second.dy.size()), both.dy.end());
  second.mask.first_sequence++;
  for (auto* test : {&both, &second}) test->forward(), test->backward();
  const auto end_of = [](const std::string& all, const std::string& part) {
    return all.substr(all.size() - part.size());
  };
  EXPECT_EQ(end_of(bytes(both.y), bytes(second.y)), bytes(second.y));
  EXPECT_EQ(end_of(bytes(both.dqkv), bytes(second.dqkv)), bytes(second.dqkv));
}

// A token's output has the same bits whatever tokens follow it.
TYPED_TEST(Attention, OutputsDoNotDependOnLaterTokens) {
  Case<TypeParam> all({1, 300, 2, 1, 16}), start({1, 100, 2, 1, 16});
  std::copy_n(all.qkv.begin(), start.qkv.size(), start.qkv.begin());
  all.forward(), start.forward();
  EXPECT_EQ(bytes(all.y).substr(0, bytes(start.y).size()), bytes(start.y));
}

// One sequence, grown by parts, in pages that hold NaN where nothing was written.
template <class T>
std::vector<T> with_cache(const Case<T>& whole, const std::vector<int64_t>& parts,
                          int64_t page_size, Rows rows) {
  const AttentionSize& s = whole.size;
  constexpr int64_t kLayers = 2;
  const int64_t num_pages = (s.tokens + page_size - 1) / page_size;
  const int64_t page_elements = kLayers * 2 * s.kv_heads * page_size * s.head_dim;
  std::vector<T> memory(num_pages * page_elements, from_float<T>(kNan));
  std::vector<void*> pages;
  for (int64_t n = num_pages - 1; n >= 0; n--) pages.push_back(&memory[n * page_elements]);
  std::vector<T> all;
  Stream stream;
  int64_t position = 0;
  for (const int64_t count : parts) {
    std::vector<T> qkv(whole.qkv.begin() + position * s.packed(),
                       whole.qkv.begin() + (position + count) * s.packed());
    std::vector<T> y(count * s.width());
    const CachedSequence sequence{count, position, pages};
    attention_with_cache(tensor(y, {count, s.width()}), tensor(qkv, {count, s.packed()}), s.of(),
                         std::span(&sequence, 1), {page_size, 1}, rows, stream);
    all.insert(all.end(), y.begin(), y.begin() + count * s.width());
    position += count;
  }
  // Nothing of the other layer was touched.
  for (int64_t n = 0; n < num_pages; n++) {
    for (int64_t i = 0; i < page_elements / kLayers; i++) {
      EXPECT_TRUE(std::isnan(to_float(memory[n * page_elements + i])));
    }
  }
  return all;
}

TYPED_TEST(Attention, WithCacheIsTheSameAttention) {
  using T = TypeParam;
  const AttentionSize s{1, 330, 4, 2, 20};
  Case<T> whole(s);
  Reference want(whole, kUnit<T>);
  want.run();
  for (const Rows rows : {Rows::in_tiles, Rows::one_by_one}) {
    const std::vector<T> plain = with_cache(whole, {330}, 332, rows);
    for (int64_t i = 0; i < 330 * s.width(); i++) {
      ASSERT_NEAR(to_float(plain[i]), want.y[i], kFp32Error + want.y_error[i]) << i;
    }
    // The same bits whatever the parts, pages and threads.
    for (const auto& parts :
         {std::vector<int64_t>{1, 1, 2, 3, 4, 5, 64, 250}, {300, 1, 29}, {5, 0, 325}, {63, 267}}) {
      for (const int64_t page_size : {4, 16, 68, 332}) {
        set_num_threads(static_cast<int>(parts.size() + page_size / 4) % 3 + 1);
        const std::vector<T> got = with_cache(whole, parts, page_size, rows);
        for (int64_t i = 0; i < 330 * s.width(); i++) {
          ASSERT_EQ(to_float(got[i]), to_float(plain[i]))
              << "token " << i / s.width() << ", parts from " << parts[0] << " on, pages of "
              << page_size;
        }
      }
    }
  }
}

TEST(AttentionNumbers, LargeScoresDoNotOverflow) {
  Case<float> test({1, 3, 1, 1, 1});
  test.qkv = {100, 90, 1, 100, 100, 2, 100, -100, 3};  // scores up to 10000
  test.forward(), test.backward();
  EXPECT_EQ(test.y, (std::vector<float>{1, 2, 2}));
  for (const float d : test.dqkv) EXPECT_TRUE(std::isfinite(d));
}

// What is not finite shows in its own sequence, and stays out of the next one, which uses the same
// scratch memory.
TEST(AttentionNumbers, WhatIsNotFiniteIsPassedOnAndDoesNotStay) {
  Case<float> bad({1, 64, 1, 1, 8}), good({1, 3, 1, 1, 8});
  bad.qkv.assign(bad.qkv.size(), kNan);
  for (auto* test : {&bad, &good}) test->forward(), test->backward();
  for (const float v : bad.y) ASSERT_TRUE(std::isnan(v));
  for (const float v : bad.dqkv) ASSERT_TRUE(std::isnan(v));
  for (const float v : good.y) ASSERT_TRUE(std::isfinite(v));
  for (const float v : good.dqkv) ASSERT_TRUE(std::isfinite(v));
}

TEST(AttentionErrors, NamesShapesThatDoNotFit) {
  Case<float> test({1, 4, 4, 2, 8});
  Stream stream;
  EXPECT_THROW(attention_forward(test.outputs(test.y), test.lses(), test.qkvs(), {4, 3, 8},
                                 DropoutMask(), stream),
               std::logic_error);
  EXPECT_THROW(attention_forward(test.outputs(test.y), test.lses(), test.qkvs(), {4, 2, 9},
                                 DropoutMask(), stream),
               std::logic_error);
  std::vector<float> memory(2 * 2 * 12 * 8);
  std::vector<void*> pages{memory.data()};
  const auto cached = [&](const CachedSequence& sequence, int64_t page_size) {
    attention_with_cache(tensor(test.y, {4, 32}), tensor(test.qkv, {4, 64}), {4, 2, 8},
                         std::span(&sequence, 1), {page_size, 0}, Rows::in_tiles, stream);
  };
  EXPECT_THROW(cached({4, 9, pages}, 12), std::logic_error);  // beyond the last page
  EXPECT_THROW(cached({3, 0, pages}, 12), std::logic_error);  // a row too many
  EXPECT_THROW(cached({4, 0, pages}, 10), std::logic_error);
}

}  // namespace
}  // namespace lockstep::kernels::tests
