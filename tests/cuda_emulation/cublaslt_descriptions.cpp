#include "cuda_emulation/cublaslt_descriptions.h"

#include <algorithm>

#include "cuda_emulation/scheduler.h"

using namespace cuda_emulation::cublaslt;
using cuda_emulation::count_handle;

namespace {

constexpr uint32_t kDefaultAlignment = 256;

// An attribute's place in one of the structs.
struct Field {
  void* at = nullptr;
  size_t size = 0;
};
template <class T>
Field field(T& value) {
  return {&value, sizeof(T)};
}

Field find(Layout& l, cublasLtMatrixLayoutAttribute_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return field(l.type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return field(l.order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return field(l.rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return field(l.cols);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return field(l.leading);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return field(l.batch);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return field(l.stride);
    default:
      return {};
  }
}
Field find(Description& d, cublasLtMatmulDescAttributes_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return field(d.compute_type);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return field(d.scale_type);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return field(d.pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return field(d.transpose_a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return field(d.transpose_b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return field(d.epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return field(d.bias);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
      return field(d.bias_stride);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return field(d.bias_type);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return field(d.aux);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return field(d.aux_leading);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
      return field(d.aux_stride);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
      return field(d.aux_type);
    default:
      return {};
  }
}
Field find(Preference& p, cublasLtMatmulPreferenceAttributes_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return field(p.workspace_bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return field(p.reductions);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return field(p.alignment[0]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return field(p.alignment[1]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return field(p.alignment[2]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return field(p.alignment[3]);
    default:
      return {};
  }
}

template <class T, class Opaque, class Attribute>
cublasStatus_t set_attribute(Opaque* opaque, Attribute attribute, const void* value, size_t size) {
  T all = get<T>(opaque);
  const Field place = find(all, attribute);
  if (place.at == nullptr) return unsupported("an attribute that is not emulated");
  if (value == nullptr || size != place.size) return invalid("an attribute of another size");
  std::memcpy(place.at, value, size);
  return put(opaque, all);
}
template <class T, class Opaque, class Attribute>
cublasStatus_t get_attribute(const Opaque* opaque, Attribute attribute, void* value, size_t size,
                             size_t* written) {
  T all = get<T>(opaque);
  const Field place = find(all, attribute);
  if (place.at == nullptr) return unsupported("an attribute that is not emulated");
  if (written != nullptr) *written = place.size;
  if (size == 0 && written != nullptr) return CUBLAS_STATUS_SUCCESS;
  if (value == nullptr || size != place.size) return invalid("an attribute of another size");
  std::memcpy(value, place.at, size);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t leading) {
  return put(layout,
             Layout{rows, cols, leading, 0, static_cast<uint32_t>(type), CUBLASLT_ORDER_COL, 1});
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t leading) {
  *layout = new cublasLtMatrixLayoutOpaque_t{};
  count_handle("cublasLt layouts", 1);
  return cublasLtMatrixLayoutInit_internal(*layout, sizeof(**layout), type, rows, cols, leading);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  if (layout != nullptr) count_handle("cublasLt layouts", -1);
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t size) {
  return set_attribute<Layout>(layout, attribute, value, size);
}
cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                void* value, size_t size, size_t* written) {
  return get_attribute<Layout>(layout, attribute, value, size, written);
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t description, size_t,
                                               cublasComputeType_t compute_type,
                                               cudaDataType scale_type) {
  Description d{};
  d.compute_type = compute_type;
  d.scale_type = scale_type;
  d.pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  d.transpose_a = d.transpose_b = CUBLAS_OP_N;
  d.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  d.bias_type = d.aux_type = -1;
  return put(description, d);
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description,
                                        cublasComputeType_t compute_type, cudaDataType scale_type) {
  *description = new cublasLtMatmulDescOpaque_t{};
  count_handle("cublasLt descriptions", 1);
  return cublasLtMatmulDescInit_internal(*description, sizeof(**description), compute_type,
                                         scale_type);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  if (description != nullptr) count_handle("cublasLt descriptions", -1);
  delete description;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t size) {
  return set_attribute<Description>(description, attribute, value, size);
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute, void* value,
                                              size_t size, size_t* written) {
  return get_attribute<Description>(description, attribute, value, size, written);
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t) {
  Preference p{};
  p.reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
  std::ranges::fill(p.alignment, kDefaultAlignment);
  return put(preference, p);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t{};
  count_handle("cublasLt preferences", 1);
  return cublasLtMatmulPreferenceInit_internal(*preference, sizeof(**preference));
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  if (preference != nullptr) count_handle("cublasLt preferences", -1);
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t size) {
  return set_attribute<Preference>(preference, attribute, value, size);
}

}  // extern "C"
