#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <atomic>
#include <deque>
#include <functional>

#include "core/mirrored.h"
#include "core/rehearsal.h"
#include "kernels/activation.h"
#include "kernels/adam.h"
#include "kernels/attention.h"
#include "kernels/classifier.h"
#include "kernels/cuda/workspace.h"
#include "kernels/dropout.h"
#include "kernels/embedding.h"
#include "kernels/layernorm.h"
#include "kernels/matmul.h"
#include "kernels/ordered_sum.h"
#include "kernels/reduce.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "tests/kernels/on_device.h"

// The bytes that kernels declare (Work), against the pages that they touch on the emulated device:
// a page's first read and its first write each fault once.
namespace lockstep::kernels {
namespace {

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)

constexpr int64_t kPage = 4096;

// Memory that the emulated device takes for its own, and that counts who touches it. One at a time.
class WatchedMemory {
 public:
  WatchedMemory() {
    memory_ = static_cast<char*>(mmap(nullptr, kSize, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    EXPECT_EQ(cudaHostRegister(memory_, kSize, 0), cudaSuccess);
    active = this;
    struct sigaction ours {};
    ours.sa_sigaction = &WatchedMemory::on_fault;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &ours, &before_);
  }
  ~WatchedMemory() {
    sigaction(SIGSEGV, &before_, nullptr);
    active = nullptr;
    EXPECT_EQ(cudaHostUnregister(memory_), cudaSuccess);
    munmap(memory_, kSize);
  }

  // Zeros, from a page on.
  Tensor take(DType dtype, Shape shape) {
    void* begin = memory_ + taken_;
    const Tensor tensor(begin, dtype, shape, Device::cuda);
    taken_ += (tensor.size_bytes() + kPage - 1) / kPage * kPage;
    EXPECT_LE(taken_, kSize);
    return tensor;
  }

  void watch() {
    touched_ = 0;
    mprotect(memory_, static_cast<size_t>(taken_), PROT_NONE);
  }
  // Bytes in pages that were read plus bytes in pages that were written since watch().
  double touched() {
    mprotect(memory_, static_cast<size_t>(taken_), PROT_READ | PROT_WRITE);
    return static_cast<double>(touched_ * kPage);
  }

 private:
  static constexpr int64_t kSize = int64_t{64} << 20;
  static inline WatchedMemory* active = nullptr;

  static void on_fault(int, siginfo_t* info, void* context) {
    auto* address = static_cast<char*>(info->si_addr);
    WatchedMemory& m = *active;
    if (address < m.memory_ || address >= m.memory_ + m.taken_) {
      sigaction(SIGSEGV, &m.before_, nullptr);  // somebody else's: it faults again
      return;
    }
    const bool write = (static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2) != 0;
    m.touched_++;
    char* page = m.memory_ + (address - m.memory_) / kPage * kPage;
    mprotect(page, kPage, write ? PROT_READ | PROT_WRITE : PROT_READ);
  }

  char* memory_ = nullptr;
  int64_t taken_ = 0;
  std::atomic<int64_t> touched_{0};
  struct sigaction before_ {};
};

struct DeclaredWork : testing::Test {
  static constexpr int64_t kBatch = 2, kLength = 256, kChannels = 384, kRows = kBatch * kLength;

  Tensor take(Shape shape, DType dtype) { return memory.take(dtype, shape); }
  Tensor rows(DType dtype = DType::bf16, int64_t columns = kChannels) {
    return take({kBatch, kLength, columns}, dtype);
  }
  Tensor row(DType dtype = DType::bf16, int64_t size = kChannels) { return take({size}, dtype); }

  // `beside`: bytes that are declared and not seen here: of the workspace, or read again by the
  // next kernel of the same operation.
  void expect_declared(const std::function<void(Stream&)>& run, double beside = 0) {
    double declared = 0;
    {
      Rehearsal rehearsal;
      Stream rehearsed(Device::cuda);
      run(rehearsed);
      for (const auto& entry : rehearsal.log().entries()) declared += entry.work.bytes;
    }
    run(stream);
    stream.synchronize();
    memory.watch();
    run(stream);
    stream.synchronize();
    const double touched = memory.touched();
    // Short operands (gains, losses) have a page where they need less.
    const double pages = 10 * static_cast<double>(kPage);
    EXPECT_GT(touched, 4 * pages);
    EXPECT_NEAR(declared - beside, touched, pages);
  }

  WatchedMemory memory;
  Stream stream{Device::cuda};
};

TEST_F(DeclaredWork, OfNorms) {
  const Tensor x = rows(), y = rows(), dy = rows(), dx = rows(), gain = row(), bias = row(),
               mean = row(DType::fp32, kRows), scale = row(DType::fp32, kRows),
               dgain = row(DType::fp32), dbias = row(DType::fp32);
  expect_declared(
      [&](Stream& s) { layernorm_forward(y, mean, scale, x, {}, gain, bias, 1e-5f, s); });
  expect_declared([&](Stream& s) { rmsnorm_forward(y, scale, x, {}, gain, 1e-5f, s); });
  const Tensor added = rows();
  expect_declared([&](Stream& s) {
    layernorm_forward(y, mean, scale, x, {added, added}, gain, bias, 1e-5f, s);
  });
  expect_declared([&](Stream& s) { rmsnorm_forward(y, scale, x, {added, added}, gain, 1e-5f, s); });
  // Partial sums are written and read.
  const auto partials = [](int64_t sums) {
    return 2.0 * static_cast<double>(cuda::norm_workspace_bytes(kRows / 4, kChannels, sums));
  };
  expect_declared(
      [&](Stream& s) { layernorm_backward(dx, dgain, dbias, dy, x, gain, mean, scale, s); },
      partials(2));
  expect_declared([&](Stream& s) { rmsnorm_backward(dx, dgain, dy, x, gain, scale, s); },
                  partials(1));
}

TEST_F(DeclaredWork, OfActivations) {
  const Tensor x = rows(), y = rows(), dy = rows(), dx = rows(), both = rows(DType::bf16, 768),
               dboth = rows(DType::bf16, 768);
  const auto kind = Activation::gelu_tanh;
  expect_declared([&](Stream& s) { activation_forward(y, x, kind, s); });
  expect_declared([&](Stream& s) { activation_backward(dx, dy, x, kind, s); });
  expect_declared([&](Stream& s) { activation_backward(dy, dy, x, kind, s); });  // in place
  expect_declared([&](Stream& s) { gated_activation_forward(y, both, kind, s); });
  expect_declared([&](Stream& s) { gated_activation_backward(dboth, dy, both, kind, s); });
}

TEST_F(DeclaredWork, OfTheResidualStream) {
  const Tensor x = rows(), y = rows(), z = rows();
  const tests::MaskOnDevice mask({.probability = 0.5f}, stream);
  stream.synchronize();
  expect_declared([&](Stream& s) { residual_add(z, x, y, DropoutMask(), s); });
  expect_declared([&](Stream& s) { residual_add(y, x, y, mask, s); });
  expect_declared([&](Stream& s) { dropout(z, x, mask, s); });
}

TEST_F(DeclaredWork, OfEmbeddings) {
  const int64_t vocab = kRows;
  const Tensor tokens = take({kBatch, kLength}, DType::int32),
               table = take({vocab, kChannels}, DType::bf16),
               positions = take({kLength, kChannels}, DType::bf16), y = rows(),
               dtable = take({vocab, kChannels}, DType::fp32),
               dpositions = take({kLength, kChannels}, DType::fp32);
  for (int64_t i = 0; i < kRows; i++) tokens.as<int32_t>()[i] = static_cast<int32_t>(i * 5 % vocab);
  expect_declared([&](Stream& s) { embedding_forward(y, tokens, table, positions, 0, s); });
  // Sorting, for one run only, leaves pairs in the workspace; positions read the gradient again.
  expect_declared([&](Stream& s) { embedding_backward(dtable, dpositions, y, tokens, s); },
                  kRows * 8.0 + static_cast<double>(y.size_bytes()));
}

TEST_F(DeclaredWork, OfRope) {
  const Heads heads{.num_heads = 4, .num_kv_heads = 2, .head_dim = 48};
  const Tensor qkv = rows(DType::bf16, heads.packed()),
               table = take({kLength, heads.head_dim}, DType::fp32);
  // A page of values beside those that are turned is touched with them.
  const double values = static_cast<double>(2 * kRows * 2 * heads.head_dim) * 2;
  expect_declared([&](Stream& s) { rope_forward(qkv, table, heads, 0, s); }, -values);
}

TEST_F(DeclaredWork, OfTheUpdate) {
  const int64_t size = 1 << 16;
  const Tensor weights = row(DType::bf16, size), master = row(DType::fp32, size),
               first = row(DType::fp32, size), second = row(DType::fp32, size),
               gradients = row(DType::fp32, size);
  Mirrored<AdamStep> step(Device::cuda);  // beside the memory that is watched
  step.upload(stream);
  expect_declared([&](Stream& s) {
    adam_update(weights, master, first, second, gradients, {}, step.there(), s);
  });
  expect_declared([&](Stream& s) {
    adam_update(master, master, first, second, gradients, {}, step.there(), s);
  });
  expect_declared([&](Stream& s) { cast(weights, gradients, s); });
  expect_declared([&](Stream& s) { cast(master, gradients, s); });  // a copy
  expect_declared([&](Stream& s) { set_zero(gradients, s); });
  Mirrored<Range> all(Device::cuda);
  Mirrored<double> total(Device::cuda);
  all.host() = {0, size};
  all.upload(stream), total.upload(stream);
  stream.synchronize();
  expect_declared(
      [&](Stream& s) { add_sums_of_squares(total.there(), gradients, all.there(), 1, size, s); });
}

TEST_F(DeclaredWork, OfOrderedSums) {
  const int64_t size = 1 << 15;
  std::vector<Tensor> terms;
  for (int i = 0; i < 4; i++) terms.push_back(row(DType::bf16, size));
  const Tensor out = row(DType::fp32, size);
  const std::vector<Addition> additions = {{0, 1}, {2, 3}, {0, 2}};
  expect_declared([&](Stream& s) { ordered_sum(out, terms, additions, s); });
  expect_declared([&](Stream& s) { ordered_sum(Tensor(), terms, additions, s); });
}

TEST_F(DeclaredWork, OfProducts) {
  const Tensor x = rows(), weight = take({512, kChannels}, DType::bf16),
               down = take({kChannels, 512}, DType::bf16), y = rows(DType::bf16, 512),
               bias = row(DType::bf16, 512), dweight = take({512, kChannels}, DType::fp32),
               dbias = row(DType::fp32, 512);
  expect_declared([&](Stream& s) { linear_forward(y, x, weight, bias, s); });
  expect_declared([&](Stream& s) { linear_backward_input(x, y, weight, s); });
  expect_declared([&](Stream& s) { linear_backward_weight(dweight, Tensor(), y, x, s); });
  // Sums of columns go through the workspace.
  expect_declared([&](Stream& s) { linear_backward_weight(dweight, dbias, y, x, s); },
                  2.0 * static_cast<double>(dbias.size_bytes()));

  const Tensor z = rows(DType::bf16, 512);
  for (const auto kind : {Activation::gelu_tanh, Activation::relu}) {
    // A kernel of its own reads again what the product wrote.
    const double again = kind == Activation::gelu_tanh ? 0 : static_cast<double>(z.size_bytes());
    expect_declared([&](Stream& s) { linear_activation_forward(y, z, x, weight, bias, kind, s); },
                    again);
    // Here it also writes again.
    expect_declared([&](Stream& s) { linear_activation_backward_input(y, x, down, z, kind, s); },
                    2 * again);
  }
}

TEST_F(DeclaredWork, OfAttention) {
  const Heads heads{.num_heads = 4, .num_kv_heads = 2, .head_dim = 64};
  const Tensor qkv = rows(DType::bf16, heads.packed()), y = rows(DType::bf16, 256),
               lse = take({kBatch, heads.num_heads, kLength}, DType::fp32);
  expect_declared([&](Stream& s) { attention_forward(y, lse, qkv, heads, DropoutMask(), s); });
}

TEST_F(DeclaredWork, OfTheClassifier) {
  const int64_t vocab = 500, tokens = 64;
  const Tensor x = take({tokens, kChannels}, DType::bf16),
               weight = take({vocab, kChannels}, DType::bf16),
               targets = take({tokens}, DType::int32), losses = take({tokens}, DType::fp32),
               dx = take({tokens, kChannels}, DType::bf16),
               dweight = take({vocab, kChannels}, DType::fp32);
  // Logits are written and read, their gradient is written and read twice, in the workspace; x and
  // weight are read by two products each.
  const double logits = static_cast<double>(tokens * vocab) * (2 * 4 + 3 * 2);
  const auto again = static_cast<double>(x.size_bytes() + weight.size_bytes());
  Mirrored<float> scale(Device::cuda);
  expect_declared(
      [&](Stream& s) {
        classifier_loss_and_gradient(losses, dx, dweight, x, weight, targets, scale.there(), s);
      },
      logits + again);
}

#endif

}  // namespace
}  // namespace lockstep::kernels
