#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <tuple>

#include "cuda_emulation/matrix_product.h"
#include "cuda_emulation/scheduler.h"
#include "cuda_emulation/testing.h"

namespace cuda_emulation::tests {
namespace {

float as_float(const std::vector<char>& bytes, int64_t i, cudaDataType type) {
  const char* at = bytes.data() + static_cast<size_t>(i) * element_bytes(type);
  if (type == CUDA_R_32F) {
    float value = 0;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof(bits));
  return type == CUDA_R_16BF ? __bfloat162float(__nv_bfloat16(__nv_bfloat16_raw{bits}))
                             : __half2float(__half(__half_raw{bits}));
}

std::vector<char> random_elements(int64_t count, cudaDataType type, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<char> bytes(static_cast<size_t>(count) * element_bytes(type));
  for (char* at = bytes.data(); at != bytes.data() + bytes.size(); at += element_bytes(type)) {
    const float x = normal(random);
    const __nv_bfloat16_raw bf16 = __float2bfloat16_rn(x);
    const __half_raw fp16 = __float2half_rn(x);
    const void* from = &fp16.x;
    if (type == CUDA_R_32F) from = &x;
    if (type == CUDA_R_16BF) from = &bf16.x;
    std::memcpy(at, from, element_bytes(type));
  }
  return bytes;
}

struct Layout {
  Layout(cudaDataType element, int64_t height, int64_t width, int64_t between, int32_t count = 1,
         bool along_rows = false)
      : type(element),
        rows(height),
        cols(width),
        leading(between),
        batch(count),
        by_rows(along_rows) {
    cublasLtMatrixLayoutCreate(&handle, type, static_cast<uint64_t>(rows),
                               static_cast<uint64_t>(cols), leading);
    set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch);
    set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride());
    set(CUBLASLT_MATRIX_LAYOUT_ORDER, int32_t{by_rows ? CUBLASLT_ORDER_ROW : CUBLASLT_ORDER_COL});
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(handle); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  template <class T>
  void set(cublasLtMatrixLayoutAttribute_t attribute, T value) {
    EXPECT_EQ(cublasLtMatrixLayoutSetAttribute(handle, attribute, &value, sizeof(value)),
              CUBLAS_STATUS_SUCCESS);
  }
  int64_t stride() const { return leading * (by_rows ? rows : cols); }
  int64_t elements() const { return stride() * batch; }
  int64_t at(int32_t nth, int64_t i, int64_t j) const {
    return nth * stride() + (by_rows ? i * leading + j : j * leading + i);
  }

  cublasLtMatrixLayout_t handle = nullptr;
  cudaDataType type;
  int64_t rows, cols, leading;
  int32_t batch;
  bool by_rows;
};

struct Description {
  Description() { cublasLtMatmulDescCreate(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F); }
  ~Description() { cublasLtMatmulDescDestroy(handle); }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value) {
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(handle, attribute, &value, sizeof(value)),
              CUBLAS_STATUS_SUCCESS);
  }
  cublasLtMatmulDesc_t handle = nullptr;
};

class CublasLt : public testing::Test {
 protected:
  CublasLt() {  // before the memory of those that derive from it
    begin_with_seed(1);
    EXPECT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
  }
  ~CublasLt() override { cublasLtDestroy(handle_); }
  cublasLtHandle_t handle_ = nullptr;
  Stream stream_;
};

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

struct Case {
  uint32_t epilogue;
  cudaDataType in, out;
  bool transpose_a, transpose_b;
  float alpha, beta;
  int32_t batch = 1;
  bool by_rows = false;
};

class Products : public CublasLt {
 protected:
  static constexpr int64_t m = 24, n = 19, k = 71, kAuxLeading = 32;

  // A sum of k products of values around 1, in fp32, and a rounding to the type of the output.
  static void expect_near(double got, double want, cudaDataType type) {
    const double rounding = type == CUDA_R_32F ? 0 : type == CUDA_R_16BF ? 1.0 / 256 : 1.0 / 2048;
    EXPECT_NEAR(got, want, 1e-4 + 2 * rounding * (std::abs(want) + 0.1));
  }
  void check(const Case& c);
};

void Products::check(const Case& c) {
  Layout a(c.in, c.transpose_a ? k : m, c.transpose_a ? m : k, 75, c.batch, c.by_rows);
  Layout b(c.in, c.transpose_b ? n : k, c.transpose_b ? k : n, 73, c.batch, c.by_rows);
  Layout d(c.out, m, n, 26, c.batch, c.by_rows);
  const auto a_host = random_elements(a.elements(), c.in, 1);
  const auto b_host = random_elements(b.elements(), c.in, 2);
  const auto d_host = random_elements(d.elements(), c.out, 3);
  const auto bias_host = random_elements(m, c.out, 4);
  const auto aux_host = random_elements(n * kAuxLeading, c.out, 5);
  Array<char> a_data(a_host), b_data(b_host), d_data(d_host), bias(bias_host), aux(aux_host);

  Description description;
  description.set(CUBLASLT_MATMUL_DESC_TRANSA, int32_t{c.transpose_a});
  description.set(CUBLASLT_MATMUL_DESC_TRANSB, int32_t{c.transpose_b});
  description.set(CUBLASLT_MATMUL_DESC_EPILOGUE, c.epilogue);
  if ((c.epilogue & (kBias | kBiasGradient)) != 0) {
    description.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data());
  }
  description.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.data());
  description.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kAuxLeading);
  ASSERT_EQ(cublasLtMatmul(handle_, description.handle, &c.alpha, a_data.data(), a.handle,
                           b_data.data(), b.handle, &c.beta, d_data.data(), d.handle, d_data.data(),
                           d.handle, nullptr, nullptr, 0, stream_),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);

  const auto d_got = d_data.values(), bias_got = bias.values(), aux_got = aux.values();
  const auto a_at = [&](int32_t z, int64_t i, int64_t l) {
    return double{as_float(a_host, c.transpose_a ? a.at(z, l, i) : a.at(z, i, l), c.in)};
  };
  const auto b_at = [&](int32_t z, int64_t l, int64_t j) {
    return double{as_float(b_host, c.transpose_b ? b.at(z, j, l) : b.at(z, l, j), c.in)};
  };
  std::vector<double> sums(static_cast<size_t>(m));
  for (int32_t z = 0; z < c.batch; z++) {
    for (int64_t i = 0; i < m; i++) {
      for (int64_t j = 0; j < n; j++) {
        double want = 0;
        for (int64_t l = 0; l < k; l++) want += a_at(z, i, l) * b_at(z, l, j);
        want = c.alpha * want + c.beta * as_float(d_host, d.at(z, i, j), c.out);
        if ((c.epilogue & kBias) != 0) want += as_float(bias_host, i, c.out);
        if ((c.epilogue & kGelu) != 0) {
          const int64_t place = j * kAuxLeading + i;
          if ((c.epilogue & kAux) != 0) expect_near(as_float(aux_got, place, c.out), want, c.out);
          want = gelu(want);
        }
        if ((c.epilogue & kRelu) != 0) want = std::max(want, 0.0);
        if ((c.epilogue & kGeluGradient) != 0) {
          const double x = as_float(aux_host, j * kAuxLeading + i, c.out);
          want *= (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5;
        }
        sums[static_cast<size_t>(i)] += want;
        expect_near(as_float(d_got, d.at(z, i, j), c.out), want, c.out);
      }
    }
  }
  if ((c.epilogue & kSumOfRowsOfD) != 0) {
    for (int64_t i = 0; i < m; i++) {
      expect_near(as_float(bias_got, i, c.out), sums[static_cast<size_t>(i)], c.out);
    }
  }
  for (int64_t i = 0; (c.epilogue & kSumOfRowsOfA) != 0 && i < m; i++) {
    double want = 0;
    for (int64_t l = 0; l < k; l++) want += a_at(0, i, l);
    expect_near(as_float(bias_got, i, c.out), want, c.out);
  }
  for (int64_t j = 0; (c.epilogue & kSumOfColumnsOfB) != 0 && j < n; j++) {
    double want = 0;
    for (int64_t l = 0; l < k; l++) want += b_at(0, l, j);
    expect_near(as_float(bias_got, j, c.out), want, c.out);
  }
}

TEST_F(Products, AgreeWithPlainLoops) {
  for (const auto& [in, out] : {std::pair{CUDA_R_32F, CUDA_R_32F},
                                {CUDA_R_16BF, CUDA_R_16BF},
                                {CUDA_R_16BF, CUDA_R_32F},
                                {CUDA_R_16F, CUDA_R_16F}}) {
    for (const bool ta : {false, true}) {
      for (const bool tb : {false, true}) {
        SCOPED_TRACE(testing::Message() << in << " " << out << " " << ta << tb);
        check({CUBLASLT_EPILOGUE_DEFAULT, in, out, ta, tb, 0.5f, 0});
        check({CUBLASLT_EPILOGUE_DEFAULT, in, out, ta, tb, 1, 0.75f, 2});
        check({CUBLASLT_EPILOGUE_DEFAULT, in, out, ta, tb, 1, 1, 1, true});
      }
    }
  }
}

TEST_F(Products, EpiloguesAgreeWithPlainLoops) {
  for (const uint32_t epilogue :
       {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS,
        CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX,
        CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU_BGRAD}) {
    SCOPED_TRACE(epilogue);
    check({epilogue, CUDA_R_16BF, CUDA_R_16BF, true, false, 1, 0});
    check({epilogue, CUDA_R_32F, CUDA_R_32F, false, true, 1, 1});
  }
  for (const uint32_t epilogue : {CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB}) {
    SCOPED_TRACE(epilogue);
    check({epilogue, CUDA_R_16BF, CUDA_R_32F, false, true, 1, 1});
    check({epilogue, CUDA_R_32F, CUDA_R_32F, false, true, 1, 0});
  }
}

// 1 + 2^-24 + 2^-24 is 1 or more in fp32 by the order of the additions.
TEST_F(Products, SumsAreSplitAsTheAlgorithmSays) {
  Product p;
  float a[3] = {1, 0x1p-24f, 0x1p-24f}, b[3] = {1, 1, 1}, d = 0;
  p.a = {a, CUDA_R_32F, 1, 3, 1};
  p.b = {b, CUDA_R_32F, 3, 1, 3};
  p.c = p.d = {&d, CUDA_R_32F, 1, 1, 1};
  compute(p);
  EXPECT_EQ(d, 1.0f);
  p.parts = 2;  // the first term; the two others
  compute(p);
  EXPECT_EQ(d, 1.0f + 0x1p-23f);
}

// A product of 8 x 8 matrices, one thing of which a test changes.
class Refusals : public CublasLt {
 protected:
  static constexpr int64_t kEdge = 8;
  cublasStatus_t product(char* a, cublasLtMatrixLayout_t layout, const void* workspace = nullptr,
                         const cublasLtMatmulAlgo_t* algo = nullptr) {
    const float one = 1, zero = 0;
    cublasStatus_t status{};
    said_by([&] {
      status = cublasLtMatmul(handle_, description_.handle, &one, a, layout, b_.data(),
                              layout_.handle, &zero, d_.data(), layout_.handle, d_.data(),
                              layout_.handle, algo, const_cast<void*>(workspace), 1 << 20, stream_);
      cudaStreamSynchronize(stream_);
    });
    return status;
  }
  cublasStatus_t product() { return product(a_.data(), layout_.handle); }
  // Its status, where it names an algorithm or none; CUBLAS_STATUS_SUCCESS is with one.
  cublasStatus_t heuristic(cublasLtMatmulHeuristicResult_t& result) {
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatmulPreferenceCreate(&preference);
    const uint64_t most = 1 << 20;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &most, sizeof(most));
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle_, description_.handle, layout_.handle, layout_.handle, layout_.handle,
        layout_.handle, preference, 1, &result, &found);
    EXPECT_EQ(found, status == CUBLAS_STATUS_SUCCESS ? 1 : 0);
    cublasLtMatmulPreferenceDestroy(preference);
    return status;
  }
  cublasLtMatmulHeuristicResult_t heuristic() {
    cublasLtMatmulHeuristicResult_t result;
    EXPECT_EQ(heuristic(result), CUBLAS_STATUS_SUCCESS);
    return result;
  }
  cublasStatus_t check(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatrixLayout_t a,
                       cublasLtMatmulHeuristicResult_t& result) {
    cublasStatus_t status{};
    said_by([&] {
      status = cublasLtMatmulAlgoCheck(handle_, description_.handle, a, layout_.handle,
                                       layout_.handle, layout_.handle, &algorithm, &result);
    });
    return status;
  }
  Description description_;
  Layout layout_{CUDA_R_16BF, kEdge, kEdge, kEdge};
  Array<char> a_{std::vector<char>(256)}, b_{std::vector<char>(256)}, d_{256}, workspace_{1 << 20};
};

TEST_F(Refusals, APlainProductIsNotRefused) { EXPECT_EQ(product(), CUBLAS_STATUS_SUCCESS); }

TEST_F(Refusals, Shapes) {
  Layout wide(CUDA_R_16BF, kEdge, kEdge + 1, kEdge), narrow(CUDA_R_16BF, kEdge, kEdge, kEdge - 1);
  EXPECT_EQ(product(a_.data(), wide.handle), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(product(a_.data(), narrow.handle), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(product(nullptr, layout_.handle), CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(Refusals, Types) {
  for (const cudaDataType type : {CUDA_R_16F, CUDA_R_32F, CUDA_R_64F, CUDA_R_8I}) {
    Layout other(type, kEdge, kEdge, kEdge);
    EXPECT_EQ(product(a_.data(), other.handle), CUBLAS_STATUS_NOT_SUPPORTED);
  }
  description_.set(CUBLASLT_MATMUL_DESC_SCALE_TYPE, int32_t{CUDA_R_16F});
  EXPECT_EQ(product(), CUBLAS_STATUS_NOT_SUPPORTED);
  description_.set(CUBLASLT_MATMUL_DESC_SCALE_TYPE, int32_t{CUDA_R_32F});
  description_.set(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, int32_t{CUBLAS_COMPUTE_32F_FAST_TF32});
  EXPECT_EQ(product(), CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST_F(Refusals, Epilogues) {
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_BIAS});
  EXPECT_EQ(product(), CUBLAS_STATUS_INVALID_VALUE);  // no bias
  description_.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, b_.data() + 1);
  EXPECT_EQ(product(), CUBLAS_STATUS_NOT_SUPPORTED);  // not aligned
  description_.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, b_.data());
  EXPECT_EQ(product(), CUBLAS_STATUS_SUCCESS);
  description_.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t{CUDA_R_32F});
  EXPECT_EQ(product(), CUBLAS_STATUS_NOT_SUPPORTED);
  description_.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t{CUDA_R_16BF});
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_GELU_AUX_BIAS});
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kEdge);
  EXPECT_EQ(product(), CUBLAS_STATUS_INVALID_VALUE);  // no aux
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, d_.data());
  EXPECT_EQ(product(), CUBLAS_STATUS_SUCCESS);
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kEdge + 1);
  EXPECT_EQ(product(), CUBLAS_STATUS_INVALID_VALUE);
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kEdge);
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, int64_t{4});
  EXPECT_EQ(product(), CUBLAS_STATUS_INVALID_VALUE);
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, int64_t{0});
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, int32_t{CUDA_R_32F});
  EXPECT_EQ(product(), CUBLAS_STATUS_NOT_SUPPORTED);  // unlike D
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, int32_t{CUDA_R_16BF});
  EXPECT_EQ(product(), CUBLAS_STATUS_SUCCESS);
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE,
                   uint32_t{CUBLASLT_EPILOGUE_BIAS | CUBLASLT_EPILOGUE_BGRADA});
  EXPECT_EQ(product(), CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST_F(Refusals, BiasesThatTheEpilogueDoesNotUse) {
  description_.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, b_.data());
  EXPECT_EQ(product(), CUBLAS_STATUS_INVALID_VALUE);
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_DGELU});
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kEdge);
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, d_.data());
  EXPECT_EQ(product(), CUBLAS_STATUS_INVALID_VALUE);
}

// BGRADA of A as it stands, BGRADB of B transposed: of what is stored one sum after the other.
TEST_F(Refusals, LayoutsOfBiasGradients) {
  description_.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, workspace_.data());
  for (const int32_t transpose_a : {CUBLAS_OP_N, CUBLAS_OP_T}) {
    for (const int32_t transpose_b : {CUBLAS_OP_N, CUBLAS_OP_T}) {
      description_.set(CUBLASLT_MATMUL_DESC_TRANSA, transpose_a);
      description_.set(CUBLASLT_MATMUL_DESC_TRANSB, transpose_b);
      const auto expected = [](bool supported) {
        return supported ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
      };
      description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_BGRADA});
      EXPECT_EQ(product(), expected(transpose_a == CUBLAS_OP_N));
      description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_BGRADB});
      EXPECT_EQ(product(), expected(transpose_b == CUBLAS_OP_T));
    }
  }
}

TEST_F(Refusals, AttributesOfAnotherSize) {
  const int64_t transpose = CUBLAS_OP_T;
  said_by([&] {
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(description_.handle, CUBLASLT_MATMUL_DESC_TRANSA,
                                             &transpose, sizeof(transpose)),
              CUBLAS_STATUS_INVALID_VALUE);
  });
}

TEST_F(Refusals, AlignmentAndWorkspace) {
  const cublasLtMatmulHeuristicResult_t result = heuristic();
  EXPECT_GT(result.workspaceSize, 0u);
  char* a = a_.data();
  EXPECT_EQ(product(a, layout_.handle, workspace_.data(), &result.algo), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(a + 16, layout_.handle, workspace_.data(), &result.algo),
            CUBLAS_STATUS_NOT_SUPPORTED);  // the heuristic was not told
  EXPECT_EQ(product(a + 16, layout_.handle), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(a + 1, layout_.handle), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(product(a, layout_.handle, workspace_.data() + 16, &result.algo),
            CUBLAS_STATUS_INVALID_VALUE);
}

// The heuristic reads from their addresses how bias and aux are aligned.
TEST_F(Refusals, AlignmentOfBiasAndAux) {
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_GELU_AUX_BIAS});
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kEdge);
  Array<char> aux(256);
  for (const int bias_offset : {0, 8}) {
    for (const int aux_offset : {0, 8}) {
      const auto set = [&](int bias_at, int aux_at) {
        description_.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, b_.data() + bias_at);
        description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.data() + aux_at);
      };
      set(bias_offset, aux_offset);
      const cublasLtMatmulAlgo_t algorithm = heuristic().algo;
      const auto run = [&] {
        return product(a_.data(), layout_.handle, workspace_.data(), &algorithm);
      };
      EXPECT_EQ(run(), CUBLAS_STATUS_SUCCESS);
      set(bias_offset + 16, aux_offset + 16);
      EXPECT_EQ(run(), CUBLAS_STATUS_SUCCESS);
      set(bias_offset + 4, aux_offset);
      EXPECT_EQ(run(), CUBLAS_STATUS_NOT_SUPPORTED);
      set(bias_offset, aux_offset + 4);
      EXPECT_EQ(run(), CUBLAS_STATUS_NOT_SUPPORTED);
    }
  }
}

TEST_F(Refusals, AHeuristicThatFusesNothingHasNoAlgorithm) {
  setenv("LOCKSTEP_EMULATION_EPILOGUES", "0", 1);
  description_.set(CUBLASLT_MATMUL_DESC_TRANSB, int32_t{CUBLAS_OP_T});
  cublasLtMatmulHeuristicResult_t result;
  description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kEdge);
  for (const auto& [epilogue, status] :
       {std::pair{CUBLASLT_EPILOGUE_DEFAULT, CUBLAS_STATUS_SUCCESS},
        {CUBLASLT_EPILOGUE_BIAS, CUBLAS_STATUS_SUCCESS},
        {CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLAS_STATUS_NOT_SUPPORTED},
        {CUBLASLT_EPILOGUE_GELU_AUX, CUBLAS_STATUS_NOT_SUPPORTED},
        {CUBLASLT_EPILOGUE_DGELU, CUBLAS_STATUS_NOT_SUPPORTED},
        {CUBLASLT_EPILOGUE_BGRADB, CUBLAS_STATUS_NOT_SUPPORTED}}) {
    description_.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{epilogue});
    const bool has_bias = (epilogue & (kBias | kBiasGradient)) != 0;
    description_.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, has_bias ? b_.data() : nullptr);
    EXPECT_EQ(heuristic(result), status) << epilogue;
  }
  unsetenv("LOCKSTEP_EMULATION_EPILOGUES");
}

TEST_F(Refusals, StoredAlgorithms) {
  const cublasLtMatmulHeuristicResult_t chosen = heuristic();
  cublasLtMatmulHeuristicResult_t result{};
  EXPECT_EQ(check(chosen.algo, layout_.handle, result), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(result.workspaceSize, chosen.workspaceSize);
  Layout wide(CUDA_R_16BF, kEdge, kEdge + 1, kEdge);
  EXPECT_EQ(check(chosen.algo, wide.handle, result), CUBLAS_STATUS_INVALID_VALUE);
  cublasLtMatmulAlgo_t other = chosen.algo;
  other.data[0]++;
  EXPECT_EQ(check(other, layout_.handle, result), CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(Refusals, MatricesPastTheirMemoryAreSeen) {
  Array<char> small(std::vector<char>(126));
  EXPECT_EQ(product(small.data(), layout_.handle), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  clear_errors();
}

// Of kNumSeeds, those in which products of two streams do not give what they should.
class Workspaces : public CublasLt {
 protected:
  int num_seeds_that_see(bool shared) {
    int seen = 0;
    said_by([&] {
      for (int seed = 0; seed < kNumSeeds; seed++) {
        begin_with_seed(seed);
        seen += products_are_right(shared) ? 0 : 1;
      }
    });
    return seen;
  }

 private:
  static constexpr uint64_t kBytes = 1 << 16;

  bool products_are_right(bool shared) {
    constexpr int kProducts = 8;
    const float one = 1;
    Stream other;
    Description description;
    Layout layout(CUDA_R_32F, 8, 8, 8);
    const std::vector<float> zeros(64, 0.0f);
    Array<float> in(std::vector<float>(64, 1.0f)), first(zeros), second(zeros);
    Array<char> workspace(kBytes), own(kBytes);
    const cublasLtMatmulAlgo_t algorithm = choose_algorithm(description, layout);
    for (int i = 0; i < kProducts; i++) {
      for (auto [out, stream, scratch] :
           {std::tuple<float*, cudaStream_t, char*>{first.data(), stream_, workspace.data()},
            {second.data(), other, shared ? workspace.data() : own.data()}}) {
        EXPECT_EQ(cublasLtMatmul(handle_, description.handle, &one, in.data(), layout.handle,
                                 in.data(), layout.handle, &one, out, layout.handle, out,
                                 layout.handle, &algorithm, scratch, kBytes, stream),
                  CUBLAS_STATUS_SUCCESS);
      }
    }
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<float> right(64, 8.0f * kProducts);
    return first.values() == right && second.values() == right;
  }

  cublasLtMatmulAlgo_t choose_algorithm(const Description& description, const Layout& layout) {
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &kBytes, sizeof(kBytes));
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    cublasLtMatmulAlgoGetHeuristic(handle_, description.handle, layout.handle, layout.handle,
                                   layout.handle, layout.handle, preference, 1, &result, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    return result.algo;
  }
};

TEST_F(Workspaces, OfOneStreamEachAreRight) { EXPECT_EQ(num_seeds_that_see(false), 0); }
TEST_F(Workspaces, OfTwoStreamsAreSeen) { EXPECT_GT(num_seeds_that_see(true), kNumSeeds / 2); }

}  // namespace
}  // namespace cuda_emulation::tests
