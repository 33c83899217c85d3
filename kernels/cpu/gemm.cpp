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
  const Memory::desc b =
      g.b_packed ? Memory::desc({g.k, g.n}, onednn_type(g.inputs), Memory::format_tag::any)
                 : matrix(g.k, g.n, g.b_stride, g.b_transposed, g.inputs);
  const Memory::desc c = matrix(g.m, g.n, g.c_stride, false, DType::fp32);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (g.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  // None where it is empty.
  const Memory::desc bias = g.add_bias ? matrix(1, g.n, g.n, false, DType::fp32) : Memory::desc();
#if DNNL_VERSION_MAJOR >= 3
  return {cpu_engine(), a, b, bias, c, attributes};
#else
  return {dnnl::matmul::desc(a, b, bias, c), attributes, cpu_engine()};
#endif
}

// A oneDNN operation with the memory it is run on. Each thread has its own; oneDNN shares the
// compiled code among them.
class Operation {
 public:
  struct Operand {
    int name;
    Memory::desc desc;
  };
  Operation(const dnnl::primitive& primitive, const Memory::desc& scratchpad,
            const std::vector<Operand>& operands)
      : primitive_(primitive), scratchpad_bytes_(static_cast<int64_t>(scratchpad.get_size())) {
    for (const auto& [name, desc] : operands) add(name, desc);
    add(DNNL_ARG_SCRATCHPAD, scratchpad);
  }

  // `data` in the order of the operands.
  void run(const dnnl::stream& stream, Scratch& scratch, std::initializer_list<const void*> data) {
    size_t i = 0;
    for (const void* pointer : data) memory_[i++].set_data_handle(const_cast<void*>(pointer));
    memory_[i].set_data_handle(scratch.bytes(scratchpad_bytes_));
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(primitive_.get(), stream.get(), static_cast<int>(arguments_.size()),
                               arguments_.data()),
        "could not run");
  }

 private:
  void add(int name, const Memory::desc& desc) {
    memory_.emplace_back(desc, cpu_engine(), nullptr);
    arguments_.push_back({name, memory_.back().get()});
  }

  dnnl::primitive primitive_;
  int64_t scratchpad_bytes_;
  std::vector<Memory> memory_;
  std::vector<dnnl_exec_arg_t> arguments_;
};

Operation product_operation(const Gemm& g) {
  const dnnl::matmul::primitive_desc description = describe(g);
  std::vector<Operation::Operand> operands = {{DNNL_ARG_SRC, description.src_desc()},
                                              {DNNL_ARG_WEIGHTS, description.weights_desc()},
                                              {DNNL_ARG_DST, description.dst_desc()}};
  if (g.add_bias) operands.push_back({DNNL_ARG_BIAS, description.bias_desc()});
  return {dnnl::matmul(description), description.scratchpad_desc(), operands};
}

struct Packing {
  Operation operation;
  int64_t size_bytes;
};

Packing packing_operation(const Gemm& g) {
  const Memory::desc from = matrix(g.k, g.n, g.b_stride, g.b_transposed, g.inputs);
  const Memory::desc to = describe(g).weights_desc();
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::reorder::primitive_desc description(cpu_engine(), from, cpu_engine(), to, attributes);
  return {{dnnl::reorder(description),
           description.scratchpad_desc(),
           {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}}},
          static_cast<int64_t>(to.get_size())};
}

struct GemmHash {
  size_t operator()(const Gemm& g) const {
    uint64_t hash = 0;
    const auto add = [&](int64_t value) {
      hash = (hash ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15ull;
      hash ^= hash >> 32;
    };
    for (int64_t value : {g.m, g.n, g.k, g.a_stride, g.b_stride, g.c_stride}) add(value);
    add(g.a_transposed | g.b_transposed << 1 | g.b_packed << 2 | g.accumulate << 3 |
        g.add_bias << 4 | static_cast<int>(g.inputs) << 5);
    return hash;
  }
};

struct ThreadState {
  ThreadState() { omp_set_num_threads(1); }  // of this thread alone, for good
  dnnl::stream stream{cpu_engine()};
  std::unordered_map<Gemm, Operation, GemmHash> products;
  std::unordered_map<Gemm, Packing, GemmHash> packings;
  Scratch scratch;
};

ThreadState& thread_state() {
  static thread_local ThreadState state;
  return state;
}

template <class Map, class Make>
auto& find_or_make(Map& map, const Gemm& product, Make make) {
  auto found = map.find(product);
  if (found == map.end()) found = map.emplace(product, make(product)).first;
  return found->second;
}

// AMD's processors multiply bf16 by AVX-512 at twice the rate of fp32, Intel's at half of it
// (Sapphire Rapids: 87 against 175 GFLOP/s a core), and fast by AMX alone.
int isa_of_fast_bf16() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_is("intel")) return dnnl_cpu_isa_avx512_core_amx;
#endif
  return dnnl_cpu_isa_avx512_core_bf16;
}

DeviceError refusal(const Gemm& product, const dnnl::error& e) {
  return DeviceError("oneDNN refuses a matrix product ({} x {} x {}, {}): {}", product.m, product.n,
                     product.k, name(product.inputs), e.what());
}

}  // namespace

void gemm(const Gemm& product, const void* a, const void* b, float* c, const float* bias) {
  CHECK(product.add_bias == (bias != nullptr));
  ThreadState& state = thread_state();
  try {
    Operation& operation = find_or_make(state.products, product, product_operation);
    if (product.add_bias) {
      operation.run(state.stream, state.scratch, {a, b, c, bias});
    } else {
      operation.run(state.stream, state.scratch, {a, b, c});
    }
  } catch (const dnnl::error& e) {
    throw refusal(product, e);
  }
}

const void* pack_for(const Gemm& product, const void* b, Scratch& scratch) {
  ThreadState& state = thread_state();
  try {
    Packing& packing = find_or_make(state.packings, product, packing_operation);
    void* packed = scratch.bytes(packing.size_bytes);
    packing.operation.run(state.stream, state.scratch, {b, packed});
    return packed;
  } catch (const dnnl::error& e) {
    throw refusal(product, e);
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
  static const bool bf16 = probe(DType::bf16, isa_of_fast_bf16());
#if DNNL_VERSION_MAJOR >= 3
  static const bool fp16 = probe(DType::fp16, dnnl_cpu_isa_avx512_core_fp16);
#else
  static const bool fp16 = false;
#endif
  return (dtype == DType::bf16 && bf16) || (dtype == DType::fp16 && fp16);
}

}  // namespace lockstep::kernels::cpu
