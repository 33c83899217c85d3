#include "core/dtype.h"

namespace lockstep {

std::string_view name(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return "fp32";
    case DType::bf16:
      return "bf16";
    case DType::fp16:
      return "fp16";
    case DType::int32:
      return "int32";
  }
  return "?";
}

}  // namespace lockstep
