#pragma once
#include <cstddef>

#include "core/tensor.h"

// Memory that a kernel keeps between its calls, so that a step allocates nothing once it has run.
// Declare it `static thread_local`, and pass pointers, not the object, to other threads.
namespace lockstep::kernels::cpu {

class Scratch {
 public:
  // At least `count` elements, aligned to a page; their content is undefined, and so is what an
  // earlier call returned.
  template <class T>
  T* get(int64_t count) {
    return static_cast<T*>(bytes(count * static_cast<int64_t>(sizeof(T))));
  }
  void* bytes(int64_t size) {
    if (size > buffer_.size_bytes()) buffer_ = Buffer(size);
    return buffer_.tensor(DType::int32, {0}).data();
  }

 private:
  Buffer buffer_;
};

}  // namespace lockstep::kernels::cpu
