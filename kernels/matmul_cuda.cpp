#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/cuda/bias_gradient.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/workspace.h"
#include "kernels/matmul.h"

// Products by cuBLASLt. The library is free to compute a row by other instructions when a product
// has more rows, so that, unlike the CPU's, a row's bits may depend on how many rows a call has.
// Its documentation ("Results reproducibility") promises the same bits at every run of one version
// of the toolkit on GPUs of one architecture and number of multiprocessors, and with several
// streams where the caller owns the workspace. So:
// - the algorithm of a problem is the first that the heuristic names, asked once a process;
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
uint32_t alignment(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  return static_cast<uint32_t>(std::min<uintptr_t>(address & (~address + 1), 16));
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

// All that the choice of an algorithm depends on.
struct Problem {
  DType operands, result;
  bool a_transposed, b_transposed, with_bias, adds;
  int64_t rows, columns, inner;
  int64_t a_stride, b_stride, out_stride;
  uint32_t a_alignment, b_alignment, out_alignment;
  friend auto operator<=>(const Problem&, const Problem&) = default;

  std::string to_string() const {
    return fmt::format("({}, {}) x ({}, {}){} of {} into {}", rows, inner, inner, columns,
                       with_bias ? " + bias" : "", name(operands), name(result));
  }
};

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

void choose_algorithm(Plan& plan, const Problem& problem) {
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
  if (status != CUBLAS_STATUS_SUCCESS || found == 0 || best.state != CUBLAS_STATUS_SUCCESS) {
    throw DeviceError("cuBLASLt has no algorithm for the product {}: {}", problem.to_string(),
                      cublasLtGetStatusString(status));
  }
  plan.algorithm = best.algo;
  plan.workspace_bytes = static_cast<int64_t>(best.workspaceSize);
}

Plan make_plan(const Problem& problem, const Matrix& out, const Operand& a, const Operand& b,
               const Tensor& bias) {
  cublasLtMatmulDesc_t made = nullptr;
  check(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  Plan plan{layout(b.matrix), layout(a.matrix), layout(out), Operation(made), {}, 0};
  const auto operation_of = [](const Operand& x) {
    return int32_t{x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N};
  };
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, operation_of(b));
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, operation_of(a));
  if (problem.with_bias) {
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_BIAS});
    set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t{cuda_type(bias.dtype())});
    set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data());
  }
  choose_algorithm(plan, problem);
  return plan;
}

// Each matrix is read once, and the result written, to which it adds read as well.
Work work_of(const Matrix& out, const Operand& a, const Operand& b, const Tensor& bias, Into into) {
  const auto bytes = [](const Matrix& x) {
    return static_cast<double>(x.rows * x.cols * size_bytes(x.dtype));
  };
  const double out_bytes = (into == Into::add ? 2 : 1) * bytes(out);
  const double bias_bytes = bias.empty() ? 0 : static_cast<double>(bias.size_bytes());
  return {a.transposed   ? "product_weight_gradient"
          : b.transposed ? "product_forward"
                         : "product_input_gradient",
          bytes(a.matrix) + bytes(b.matrix) + out_bytes + bias_bytes,
          2.0 * static_cast<double>(out.rows) * static_cast<double>(out.cols) *
              static_cast<double>(a.cols()),
          a.matrix.dtype == DType::fp32 ? Unit::vector : Unit::tensor};
}

}  // namespace

void product(const Matrix& out, const Operand& a, const Operand& b, const Tensor& bias, Into into,
             Stream& stream) {
  CHECK(a.rows() == out.rows && b.cols() == out.cols && a.cols() == b.rows());
  CHECK(a.matrix.dtype == b.matrix.dtype);
  CHECK(out.dtype == a.matrix.dtype || out.dtype == DType::fp32);
  CHECK(bias.empty() || (bias.size() == out.cols && bias.dtype() == out.dtype));
  CHECK(into == Into::add || a.cols() > 0, "a product of nothing overwrites nothing");
  if (out.rows == 0 || out.cols == 0 || a.cols() == 0) return;
  if (stream.note(work_of(out, a, b, bias, into))) return;
  const bool adds = into == Into::add;
  const uint32_t bias_alignment = bias.empty() ? 16 : alignment(bias.data());
  const Problem problem{.operands = a.matrix.dtype,
                        .result = out.dtype,
                        .a_transposed = a.transposed,
                        .b_transposed = b.transposed,
                        .with_bias = !bias.empty(),
                        .adds = adds,
                        .rows = out.rows,
                        .columns = out.cols,
                        .inner = a.cols(),
                        .a_stride = a.matrix.stride,
                        .b_stride = b.matrix.stride,
                        .out_stride = out.stride,
                        .a_alignment = alignment(a.matrix.data),
                        .b_alignment = alignment(b.matrix.data),
                        // The bias has no preference of its own; it is read as out is written.
                        .out_alignment = std::min(alignment(out.data), bias_alignment)};

  // One call at a time, because it sets the plan's address of the bias. It only enqueues.
  static std::mutex mutex;
  static std::map<Problem, Plan> plans;
  const std::lock_guard lock(mutex);
  auto known = plans.find(problem);
  if (known == plans.end()) {
    known = plans.emplace(problem, make_plan(problem, out, a, b, bias)).first;
  }
  const Plan& plan = known->second;
  if (problem.with_bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data());
  void* workspace = plan.workspace_bytes == 0
                        ? nullptr
                        : stream.workspace(plan.workspace_bytes, Workspace::product);
  const float one = 1, beta = adds ? 1 : 0;
  const cublasStatus_t status = cublasLtMatmul(
      library(), plan.operation.get(), &one, b.matrix.data, plan.b.get(), a.matrix.data,
      plan.a.get(), &beta, out.data, plan.out.get(), out.data, plan.out.get(), &plan.algorithm,
      workspace, static_cast<size_t>(plan.workspace_bytes),
      static_cast<cudaStream_t>(stream.native()));
  if (status != CUBLAS_STATUS_SUCCESS) check(status, "the product " + problem.to_string());
}

void linear_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    Stream& stream) {
  CHECK(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows(),
        "{} = {} x {}", y.shape().to_string(), x.shape().to_string(), weight.shape().to_string());
  product(matrix(y), {matrix(x)}, transposed(matrix(weight)), bias, Into::overwrite, stream);
}

void linear_backward_input(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                           Stream& stream) {
  CHECK(dx.rows() == dy.rows() && dy.cols() == weight.rows() && dx.cols() == weight.cols(),
        "{} = {} x {}", dx.shape().to_string(), dy.shape().to_string(), weight.shape().to_string());
  product(matrix(dx), {matrix(dy)}, {matrix(weight)}, Tensor(), Into::overwrite, stream);
}

void linear_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                            const Tensor& x, Stream& stream) {
  CHECK(dweight.rows() == dy.cols() && dweight.cols() == x.cols() && dy.rows() == x.rows(),
        "{} += {} x {}", dweight.shape().to_string(), dy.shape().to_string(),
        x.shape().to_string());
  CHECK(dweight.dtype() == DType::fp32);
  product(matrix(dweight), transposed(matrix(dy)), {matrix(x)}, Tensor(), Into::add, stream);
  if (!dbias.empty()) add_bias_gradient(dbias, dy, stream);
}

}  // namespace lockstep::kernels::cuda
