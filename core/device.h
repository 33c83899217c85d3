#pragma once

namespace lockstep {

enum class Device { cpu, cuda };

// An ordered queue of work on a device. Kernels are enqueued and return at once; on the CPU there
// is nothing to wait for, because each has run when its call returns.
class Stream {
 public:
  explicit Stream(Device device = Device::cpu) : device_(device) {}
  Device device() const { return device_; }

 private:
  Device device_;
};

}  // namespace lockstep
