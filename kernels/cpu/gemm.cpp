#include "kernels/cpu/gemm.h"

#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/matmul.h"

#if DNNL_CPU_THREADING_RUNTIME != DNNL_RUNTIME_OMP && DNNL_CPU_THREADING_RUNTIME != DNNL_RUNTIME_SEQ
#error \
    "oneDNN must be built for OpenMP or sequential: other runtimes ignore the limit of one thread"
#endif

namespace lockstep::kernels::cpu {
namespace {

using Memory = dnnl::memory;

Memory::data_type onednn_type(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return Memory::data_type::f32;
    case DType::bf16:
      return Memory::data_type::bf16;
    case DType::fp16:
      return Memory::data_type::f16;
    case DType::int32:
      break;
  }
  CHECK(false, "no product of {}", name(dtype));
  return {};
}

Memory::desc matrix(int64_t rows, int64_t cols, int64_t stride, bool transposed, DType dtype) {
  const auto strides = transposed ? Memory::dims{1, stride} : Memory::dims{stride, 1};
  return {{rows, cols}, onednn_type(dtype), strides};
}

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// The one place where oneDNN 2 and 3 differ.
dnnl::matmul::primitive_desc describe(const Gemm& g) {
  const Memory::desc a = matrix(g.m, g.k, g.a_stride, g.a_transposed, g.inputs);
  const Memory::desc b = matrix(g.k, g.n, g.b_stride, g.b_transposed, g.inputs);
  const Memory::desc c = matrix(g.m, g.n, g.c_stride, false, g.output);
  const Memory::desc bias = g.bias ? matrix(1, g.n, g.n, false, g.inputs) : Memory::desc();
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (g.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  return {cpu_engine(), a, b, bias, c, attributes};
#else
  return {dnnl::matmul::desc(a, b, bias, c), attributes, cpu_engine()};
#endif
}

// A primitive with the handles it is run with. Each thread has its own; oneDNN shares the compiled
// code among them.
class Product {
 public:
  explicit Product(const Gemm& g) {
    const dnnl::matmul::primitive_desc description = describe(g);
    primitive_ = dnnl::matmul(description);
    a_ = Memory(description.src_desc(), cpu_engine(), nullptr);
    b_ = Memory(description.weights_desc(), cpu_engine(), nullptr);
    c_ = Memory(description.dst_desc(), cpu_engine(), nullptr);
    scratchpad_ = Memory(description.scratchpad_desc(), cpu_engine(), nullptr);
    scratchpad_bytes_ = static_cast<int64_t>(description.scratchpad_desc().get_size());
    arguments_ = {{DNNL_ARG_SRC, a_.get()},
                  {DNNL_ARG_WEIGHTS, b_.get()},
                  {DNNL_ARG_DST, c_.get()},
                  {DNNL_ARG_SCRATCHPAD, scratchpad_.get()}};
    if (g.bias) {
      bias_ = Memory(matrix(1, g.n, g.n, false, g.inputs), cpu_engine(), nullptr);
      arguments_.push_back({DNNL_ARG_BIAS, bias_.get()});
    }
  }

  void run(const dnnl::stream& stream, Scratch& scratch, const void* a, const void* b, void* c,
           const void* bias) {
    a_.set_data_handle(const_cast<void*>(a));
    b_.set_data_handle(const_cast<void*>(b));
    c_.set_data_handle(c);
    if (bias_) bias_.set_data_handle(const_cast<void*>(bias));
    scratchpad_.set_data_handle(scratch.bytes(scratchpad_bytes_));
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(primitive_.get(), stream.get(), static_cast<int>(arguments_.size()),
                               arguments_.data()),
        "could not execute a matrix product");
  }

 private:
  dnnl::matmul primitive_;
  Memory a_, b_, c_, bias_, scratchpad_;
  int64_t scratchpad_bytes_ = 0;
  std::vector<dnnl_exec_arg_t> arguments_;
};

struct GemmHash {
  size_t operator()(const Gemm& g) const {
    uint64_t hash = 0;
    const auto add = [&](int64_t value) {
      hash = (hash ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15ull;
      hash ^= hash >> 32;
    };
    for (int64_t value : {g.m, g.n, g.k, g.a_stride, g.b_stride, g.c_stride}) add(value);
    add(g.a_transposed | g.b_transposed << 1 | g.accumulate << 2 | g.bias << 3 |
        static_cast<int>(g.inputs) << 4 | static_cast<int>(g.output) << 8);
    return hash;
  }
};

struct ThreadState {
  ThreadState() { omp_set_num_threads(1); }  // of this thread alone, for good
  dnnl::stream stream{cpu_engine()};
  std::unordered_map<Gemm, Product, GemmHash> products;
  Scratch scratch;
};

}  // namespace

void gemm(const Gemm& product, const void* a, const void* b, void* c, const void* bias) {
  if (product.m == 0 || product.n == 0) return;
  static thread_local ThreadState state;
  try {
    auto found = state.products.find(product);
    if (found == state.products.end()) found = state.products.try_emplace(product, product).first;
    found->second.run(state.stream, state.scratch, a, b, c, bias);
  } catch (const dnnl::error& e) {
    throw DeviceError("oneDNN: {} ({} x {} x {}, {})", e.what(), product.m, product.n, product.k,
                      name(product.inputs));
  }
}

bool has_fast_product(DType dtype) {
  // oneDNN also multiplies bf16 and fp16 where the machine has no instruction for it, slowly.
  static const auto probe = [](DType type, [[maybe_unused]] int needed) {
    const int isa = static_cast<int>(dnnl::get_effective_cpu_isa());
    if ((isa & needed) != needed) return false;
    try {
      describe({.m = 64,
                .n = 64,
                .k = 64,
                .a_stride = 64,
                .b_stride = 64,
                .c_stride = 64,
                .inputs = type});
      return true;
    } catch (const dnnl::error&) {
      return false;
    }
  };
  static const bool bf16 = probe(DType::bf16, dnnl_cpu_isa_avx512_core_bf16);
#if DNNL_VERSION_MAJOR >= 3
  static const bool fp16 = probe(DType::fp16, dnnl_cpu_isa_avx512_core_fp16);
#else
  static const bool fp16 = false;
#endif
  return (dtype == DType::bf16 && bf16) || (dtype == DType::fp16 && fp16);
}

}  // namespace lockstep::kernels::cpu
