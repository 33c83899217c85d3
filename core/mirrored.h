#pragma once
#include <type_traits>

#include "core/device.h"
#include "core/tensor.h"

namespace lockstep {

// A value that the host and a device both know: one in pinned memory of the host and one in the
// device's. On the CPU there is only one, and nothing to copy.
template <class T>
class Mirrored {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit Mirrored(Device device) : host_(Buffer::pinned(DType::int32, shape(), device)) {
    if (device != Device::cpu) there_ = Buffer(DType::int32, shape(), device);
    host() = T();
  }

  T& host() { return *static_cast<T*>(host_.tensor().data()); }
  T* there() { return static_cast<T*>((there_.size_bytes() > 0 ? there_ : host_).tensor().data()); }

  // The host's must stay as it is until the copy has run.
  void upload(Stream& stream) {
    if (there_.size_bytes() > 0) copy(there_.tensor(), host_.tensor(), stream);
  }
  void download(Stream& stream) {
    if (there_.size_bytes() > 0) copy(host_.tensor(), there_.tensor(), stream);
  }

  int64_t device_bytes() const { return there_.size_bytes(); }

 private:
  static Shape shape() { return words<T>(nullptr, 1, Device::cpu).shape(); }
  Buffer host_, there_;
};

}  // namespace lockstep
