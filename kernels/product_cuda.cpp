#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "core/profile.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/workspace.h"
#include "kernels/machine.h"
#include "kernels/product_algorithms.h"

// Products by cuBLASLt. The library is free to compute a row by other instructions when a product
// has more rows, so that, unlike the CPU's, a row's bits may depend on how many rows a call has.
// Its documentation ("Results reproducibility") promises the same bits at every run of one version
// of the toolkit on GPUs of one architecture and number of multiprocessors, and with several
// streams where the caller owns the workspace. So:
// - the algorithm of a problem is the first that the heuristic names, asked once a process, or the
//   one that an earlier process took (kernels/product_algorithms.h);
// - a sum that is split is joined in a step of its own, from parts in the workspace
//   (CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE), in fp32 and not in the order in which parts arrive;
// - each stream has a workspace of its own.
namespace lockstep::kernels::cuda {
namespace {

void check(cublasStatus_t status, std::string_view operation) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError("cuBLASLt failed in {}: {}", operation, cublasLtGetStatusString(status));
}

cudaDataType_t cuda_type(DType dtype) {
  CHECK(dtype != DType::int32, "a floating-point type is needed");
  return dtype == DType::fp32 ? CUDA_R_32F : dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_16F;
}

// The largest power of two that divides the address. No algorithm needs more than 16, and where
// memory comes from must not choose among algorithms.
constexpr uint32_t kMostAlignment = 16;
uint32_t alignment(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  return static_cast<uint32_t>(std::min<uintptr_t>(address & (~address + 1), kMostAlignment));
}

template <class Handle, cublasStatus_t (*kDestroy)(Handle)>
struct Destroy {
  using pointer = Handle;
  void operator()(Handle handle) const { kDestroy(handle); }
};
template <class Handle, cublasStatus_t (*kDestroy)(Handle)>
using Owned = std::unique_ptr<Handle, Destroy<Handle, kDestroy>>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

// A row-major matrix is its own transpose to a library that goes by columns.
Layout layout(const Matrix& x) {
  cublasLtMatrixLayout_t made = nullptr;
  check(cublasLtMatrixLayoutCreate(&made, cuda_type(x.dtype), static_cast<uint64_t>(x.cols),
                                   static_cast<uint64_t>(x.rows), x.stride),
        "describing a matrix");
  return Layout(made);
}

template <class Value>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, Value value) {
  check(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof(value)),
        "describing a product");
}
template <class Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         Value value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
        "asking for an algorithm");
}

std::string_view text(Epilogue::Kind kind) {
  switch (kind) {
    case Epilogue::Kind::none:
      break;
    case Epilogue::Kind::bias:
      return ", bias";
    case Epilogue::Kind::gelu:
      return ", gelu";
    case Epilogue::Kind::gelu_gradient:
      return ", gelu gradient";
    case Epilogue::Kind::row_sums:
      return ", row sums";
  }
  return "";
}

// All that the choice of an algorithm depends on.
struct Problem {
  DType operands, result;
  bool a_transposed, b_transposed, adds, with_vector;
  Epilogue::Kind epilogue;
  int64_t rows, columns, inner;
  int64_t a_stride, b_stride, out_stride, aux_stride;
  uint32_t a_alignment, b_alignment, out_alignment, vector_alignment, aux_alignment;
  friend auto operator<=>(const Problem&, const Problem&) = default;

  // The other epilogues have kernels of ours to take their place.
  bool must_be_solved() const {
    return epilogue == Epilogue::Kind::none || epilogue == Epilogue::Kind::bias;
  }
  // Says all that is above: it is the problem's name in records of algorithms.
  std::string to_string() const {
    return fmt::format(
        "{} ({}, {}){} x ({}, {}){} {} {}{}{}; strides {} {} {} {}, alignment {} {} {} {} {}",
        name(operands), rows, inner, a_transposed ? "'" : "", inner, columns,
        b_transposed ? "'" : "", adds ? "added to" : "into", name(result), text(epilogue),
        with_vector ? ", vector" : "", a_stride, b_stride, out_stride, aux_stride, a_alignment,
        b_alignment, out_alignment, vector_alignment, aux_alignment);
  }
};

Problem problem_of(const Matrix& out, const Operand& a, const Operand& b, const Epilogue& epilogue,
                   Into into) {
  return {.operands = a.matrix.dtype,
          .result = out.dtype,
          .a_transposed = a.transposed,
          .b_transposed = b.transposed,
          .adds = into == Into::add,
          .with_vector = !epilogue.vector.empty(),
          .epilogue = epilogue.kind,
          .rows = out.rows,
          .columns = out.cols,
          .inner = a.cols(),
          .a_stride = a.matrix.stride,
          .b_stride = b.matrix.stride,
          .out_stride = out.stride,
          .aux_stride = epilogue.aux.stride,
          .a_alignment = alignment(a.matrix.data),
          .b_alignment = alignment(b.matrix.data),
          .out_alignment = alignment(out.data),
          .vector_alignment = alignment(epilogue.vector.data()),
          .aux_alignment = alignment(epilogue.aux.data)};
}

// A problem made ready, in the library's terms: out' = b' a'.
struct Plan {
  Layout b, a, out;
  Operation operation;
  cublasLtMatmulAlgo_t algorithm{};
  int64_t workspace_bytes = 0;
};

cublasLtHandle_t library() {
  // Never destroyed: the driver may be gone by the time that static objects are.
  static const cublasLtHandle_t handle = [] {
    cublasLtHandle_t made = nullptr;
    check(cublasLtCreate(&made), "starting");
    return made;
  }();
  return handle;
}

// The first that the heuristic names.
cublasStatus_t choose_algorithm(Plan& plan, const Problem& problem) {
  cublasLtMatmulPreference_t made = nullptr;
  check(cublasLtMatmulPreferenceCreate(&made), "asking for an algorithm");
  const Preference preference(made);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kProductWorkspaceBytes});
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, problem.b_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, problem.a_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.out_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, problem.out_alignment);
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library(), plan.operation.get(), plan.b.get(), plan.a.get(), plan.out.get(), plan.out.get(),
      preference.get(), 1, &best, &found);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (found == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  plan.algorithm = best.algo;
  plan.workspace_bytes = static_cast<int64_t>(best.workspaceSize);
  return best.state;
}

// The library's header: an algorithm "can be trivially serialized and later restored for use with
// the same version".
constexpr size_t kWords = std::size(cublasLtMatmulAlgo_t{}.data), kDigits = 16;

std::string to_text(const cublasLtMatmulAlgo_t& algorithm) {
  std::string text;
  for (const uint64_t word : algorithm.data) text += fmt::format("{:016x}", word);
  return text;
}

// Whether the text is of an algorithm that runs here.
bool reuse_algorithm(Plan& plan, const std::string& text) {
  if (text.size() != kWords * kDigits) return false;
  for (size_t i = 0; i < kWords; i++) {
    const char* begin = text.data() + i * kDigits;
    const auto [end, error] =
        std::from_chars(begin, begin + kDigits, plan.algorithm.data[i], kDigits);
    if (end != begin + kDigits || error != std::errc()) return false;
  }
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status =
      cublasLtMatmulAlgoCheck(library(), plan.operation.get(), plan.b.get(), plan.a.get(),
                              plan.out.get(), plan.out.get(), &plan.algorithm, &result);
  plan.workspace_bytes = static_cast<int64_t>(result.workspaceSize);
  return status == CUBLAS_STATUS_SUCCESS && plan.workspace_bytes <= kProductWorkspaceBytes;
}

cublasLtEpilogue_t library_epilogue(const Epilogue& epilogue) {
  switch (epilogue.kind) {
    case Epilogue::Kind::none:
      break;
    case Epilogue::Kind::bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::Kind::gelu:  // by tanh, as is its derivative
      return epilogue.vector.empty() ? CUBLASLT_EPILOGUE_GELU_AUX : CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    case Epilogue::Kind::gelu_gradient:
      return CUBLASLT_EPILOGUE_DGELU;
    case Epilogue::Kind::row_sums:
      return CUBLASLT_EPILOGUE_BGRADB;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

// Their alignment matters to the heuristic, which takes it from the addresses.
void set_addresses(const Operation& operation, const Epilogue& epilogue) {
  if (!epilogue.vector.empty()) {
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, epilogue.vector.data());
  }
  if (epilogue.aux.data != nullptr) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, epilogue.aux.data);
  }
}

Plan describe(const Matrix& out, const Operand& a, const Operand& b, const Epilogue& epilogue) {
  cublasLtMatmulDesc_t made = nullptr;
  check(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  Plan plan{layout(b.matrix), layout(a.matrix), layout(out), Operation(made), {}, 0};
  const auto operation_of = [](const Operand& x) {
    return int32_t{x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N};
  };
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, operation_of(b));
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, operation_of(a));
  set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{library_epilogue(epilogue)});
  if (!epilogue.vector.empty()) {
    set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
        int32_t{cuda_type(epilogue.vector.dtype())});
  }
  if (epilogue.aux.data != nullptr) {
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, epilogue.aux.stride);
  }
  set_addresses(plan.operation, epilogue);
  return plan;
}

// Of the process. Its plans end before the library's handle, which never does.
struct Products {
  std::mutex mutex;
  std::map<Problem, std::optional<Plan>> plans;   // none: the library has no algorithm
  std::map<std::string, std::string> algorithms;  // as ProductAlgorithms::by_problem
  int64_t num_refused = 0;

  static Products& all() {
    static Products products;
    return products;
  }

  const std::optional<Plan>& plan(const Problem& problem, const Matrix& out, const Operand& a,
                                  const Operand& b, const Epilogue& epilogue) {
    auto known = plans.find(problem);
    if (known != plans.end()) return known->second;
    Plan plan = describe(out, a, b, epilogue);
    const std::string key = problem.to_string();
    const auto given = algorithms.find(key);
    const bool was_given = given != algorithms.end();
    if (was_given && given->second.empty() && !problem.must_be_solved()) {
      return plans.emplace(problem, std::nullopt).first->second;
    }
    if (was_given && reuse_algorithm(plan, given->second)) {
      return plans.emplace(problem, std::move(plan)).first->second;
    }
    num_refused += was_given ? 1 : 0;
    const cublasStatus_t status = choose_algorithm(plan, problem);
    const bool found = status == CUBLAS_STATUS_SUCCESS;
    // Any other failure says nothing of the problem, and must not decide bits.
    const bool cannot =
        status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
    if (!found && (problem.must_be_solved() || !cannot)) {
      throw DeviceError("cuBLASLt has no algorithm for the product {}: {}", key,
                        cublasLtGetStatusString(status));
    }
    algorithms[key] = found ? to_text(plan.algorithm) : "";
    return plans.emplace(problem, found ? std::optional(std::move(plan)) : std::nullopt)
        .first->second;
  }
};

// What the library asks of an operand of its epilogues (CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD), and
// whole vectors of 16 bytes.
bool is_allowed(const Epilogue& epilogue) {
  constexpr int64_t kAuxMultiple = 8;
  return epilogue.aux.data == nullptr || (epilogue.aux.stride % kAuxMultiple == 0 &&
                                          alignment(epilogue.aux.data) == kMostAlignment);
}

// Each matrix is read once, and the result written, to which it adds read as well.
Work work_of(const Matrix& out, const Operand& a, const Operand& b, const Epilogue& epilogue,
             Into into) {
  const auto bytes = [](const Matrix& x) {
    return static_cast<double>(x.rows * x.cols * size_bytes(x.dtype));
  };
  const double out_bytes = (into == Into::add ? 2 : 1) * bytes(out);
  const double vector_bytes =
      epilogue.vector.empty() ? 0 : static_cast<double>(epilogue.vector.size_bytes());
  const ProductSize size{out.rows, out.cols, a.cols()};
  return {a.transposed   ? "product_weight_gradient"
          : b.transposed ? "product_forward"
                         : "product_input_gradient",
          bytes(a.matrix) + bytes(b.matrix) + out_bytes + vector_bytes + bytes(epilogue.aux),
          size.flops(), a.matrix.dtype == DType::fp32 ? Unit::vector : Unit::tensor, size};
}

void check_operands(const Matrix& out, const Operand& a, const Operand& b, const Epilogue& epilogue,
                    Into into) {
  CHECK(a.rows() == out.rows && b.cols() == out.cols && a.cols() == b.rows());
  CHECK(a.matrix.dtype == b.matrix.dtype);
  CHECK(out.dtype == a.matrix.dtype || out.dtype == DType::fp32);
  const bool sums = epilogue.kind == Epilogue::Kind::row_sums;
  const Tensor& vector = epilogue.vector;
  CHECK(vector.empty() ||
        (vector.size() == (sums ? out.rows : out.cols) && vector.dtype() == out.dtype));
  const Matrix& aux = epilogue.aux;
  CHECK(aux.data == nullptr ||
        (aux.rows == out.rows && aux.cols == out.cols && aux.dtype == out.dtype));
  CHECK(into == Into::add || a.cols() > 0, "a product of nothing overwrites nothing");
}

}  // namespace

ProductAlgorithms product_algorithms() {
  Products& all = Products::all();
  const std::lock_guard lock(all.mutex);
  return {fmt::format("cuBLASLt {}", cublaslt_version().loaded), this_gpu(cuda_device()).name,
          all.algorithms, all.num_refused};
}

void reuse_product_algorithms(const std::map<std::string, std::string>& by_problem) {
  Products& all = Products::all();
  const std::lock_guard lock(all.mutex);
  all.plans.clear();
  all.algorithms = by_problem;
  all.num_refused = 0;
}

bool fused_product(const Matrix& out, const Operand& a, const Operand& b, const Epilogue& epilogue,
                   Into into, Stream& stream) {
  check_operands(out, a, b, epilogue, into);
  if (!is_allowed(epilogue)) return false;
  if (out.rows == 0 || out.cols == 0 || a.cols() == 0) return true;
  const Work work = work_of(out, a, b, epilogue, into);
  if (stream.note(work)) return true;
  const Problem problem = problem_of(out, a, b, epilogue, into);

  // One call at a time, because it sets the plan's addresses. It only enqueues.
  Products& all = Products::all();
  const std::lock_guard lock(all.mutex);
  const std::optional<Plan>& plan = all.plan(problem, out, a, b, epilogue);
  if (!plan) return false;
  set_addresses(plan->operation, epilogue);
  // All that any product may ask for, from the first one on: it never moves.
  void* workspace = stream.workspace(kProductWorkspaceBytes, Workspace::product);
  const ProfileScope scope(work, stream);
  const float one = 1, beta = into == Into::add ? 1 : 0;
  const cublasStatus_t status = cublasLtMatmul(
      library(), plan->operation.get(), &one, b.matrix.data, plan->b.get(), a.matrix.data,
      plan->a.get(), &beta, out.data, plan->out.get(), out.data, plan->out.get(), &plan->algorithm,
      workspace, static_cast<size_t>(plan->workspace_bytes),
      static_cast<cudaStream_t>(stream.native()));
  if (status != CUBLAS_STATUS_SUCCESS) check(status, "the product " + problem.to_string());
  return true;
}

void product(const Matrix& out, const Operand& a, const Operand& b, const Tensor& bias, Into into,
             Stream& stream) {
  const auto kind = bias.empty() ? Epilogue::Kind::none : Epilogue::Kind::bias;
  const bool done = fused_product(out, a, b, {kind, bias}, into, stream);
  CHECK(done);
}

}  // namespace lockstep::kernels::cuda
