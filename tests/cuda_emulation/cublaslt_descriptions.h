#pragma once
#include <cublasLt.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

// The descriptions of products that programs make of opaque structs of cuBLASLt: layouts of
// matrices, operations, preferences.
namespace cuda_emulation::cublaslt {

// What stands in the opaque structs of the library.
struct Layout {
  uint64_t rows, cols;
  int64_t leading, stride;
  uint32_t type;
  int32_t order, batch;
};
struct Description {
  int32_t compute_type, scale_type, pointer_mode, transpose_a, transpose_b;
  uint32_t epilogue;
  uint64_t bias, aux;
  int64_t bias_stride, aux_leading, aux_stride;
  int32_t bias_type, aux_type;  // negative: that of D
};
struct Preference {
  uint64_t workspace_bytes;
  uint32_t alignment[4];  // of A, B, C and D
  uint32_t reductions;    // that may join a sum that is split; ours are joined in order
};
struct Algorithm {
  uint64_t mark, workspace_bytes;
  uint32_t alignment[6];  // of A, B, C, D, bias and aux
  int32_t parts;          // that sums are split into
};

template <class T, class Opaque>
T get(const Opaque* opaque) {
  static_assert(sizeof(T) <= sizeof(*opaque) && std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, opaque, sizeof(T));
  return value;
}
template <class T, class Opaque>
cublasStatus_t put(Opaque* opaque, const T& value) {
  static_assert(sizeof(T) <= sizeof(*opaque) && std::is_trivially_copyable_v<T>);
  std::memcpy(opaque, &value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

// Both say why on stderr.
inline cublasStatus_t refuse(cublasStatus_t status, const char* why) {
  std::fprintf(stderr, "emulated device: cublasLt refuses: %s\n", why);
  return status;
}
inline cublasStatus_t invalid(const char* why) { return refuse(CUBLAS_STATUS_INVALID_VALUE, why); }
inline cublasStatus_t unsupported(const char* why) {
  return refuse(CUBLAS_STATUS_NOT_SUPPORTED, why);
}

}  // namespace cuda_emulation::cublaslt
