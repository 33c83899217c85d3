#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/device.h"
#include "core/dtype.h"

namespace lockstep {

// Up to four dimensions, outermost first; row-major, without gaps.
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);
  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i]; }
  int64_t& operator[](int i) { return dims_[i]; }
  int64_t size() const;           // elements; 1 for rank 0
  std::string to_string() const;  // "(2, 3)"
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// A typed view of memory that somebody else owns. Cheap to copy; an empty one stands for "none".
class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, DType dtype, Shape shape, Device device = Device::cpu)
      : data_(data), dtype_(dtype), device_(device), shape_(shape) {}

  bool empty() const { return data_ == nullptr; }
  void* data() const { return data_; }
  template <class T>
  T* as() const {
    CHECK(kDTypeOf<T> == dtype_, "tensor is {}", name(dtype_));
    return static_cast<T*>(data_);
  }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t size() const { return shape_.size(); }  // elements
  int64_t size_bytes() const { return size() * lockstep::size_bytes(dtype_); }

  // As a matrix: all dimensions but the last, and the last.
  int64_t rows() const { return cols() == 0 ? 0 : size() / cols(); }
  int64_t cols() const { return shape_.rank() == 0 ? 1 : shape_[shape_.rank() - 1]; }

  Tensor reshape(Shape shape) const;               // of the same size
  Tensor slice(int64_t begin, int64_t end) const;  // of the first dimension

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::fp32;
  Device device_ = Device::cpu;
  Shape shape_;
};

template <class T>
T* data_or_null(const Tensor& x) {
  return x.empty() ? nullptr : x.as<T>();
}

// `count` values of a type that tensors do not know, as 32-bit words to be moved.
template <class T>
Tensor words(T* data, int64_t count, Device device) {
  static_assert(sizeof(T) % sizeof(int32_t) == 0);
  return {data, DType::int32, {count * static_cast<int64_t>(sizeof(T) / sizeof(int32_t))}, device};
}

// out = x, of one size and dtype, on any devices. Enqueued in the stream where one of them is not
// the CPU: the host's side must then be pinned, or else the call waits for the copy.
void copy(const Tensor& out, const Tensor& x, Stream& stream);

// Owns memory, zeroed; in a Rehearsal, addresses only. The CPU's is aligned to a page so that it
// suits any vector width and large pages. Movable only. Throws DeviceError when there is not
// enough.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size_bytes, Device device = Device::cpu);
  Buffer(DType dtype, Shape shape, Device device = Device::cpu);
  // The CPU's memory, but such that `device` copies from and to it while the host goes on.
  static Buffer pinned(DType dtype, Shape shape, Device device);
  // What is sent to other workers or received from them: on a GPU by set_peer_memory.
  static Buffer for_peers(DType dtype, Shape shape, Device device);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  int64_t size_bytes() const { return size_bytes_; }
  Device device() const { return device_; }
  // View of the whole as (dtype, shape) given at construction or here, from `offset_bytes` on.
  Tensor tensor() const { return view_; }
  Tensor tensor(DType dtype, Shape shape, int64_t offset_bytes = 0) const;

 private:
  // Pages of the system, or addresses of a rehearsal; by cuda_runtime.h; by the PeerMemory.
  enum class Source { pages, device, pinned, peers };
  Buffer(int64_t size_bytes, Device device, Source source);

  void* data_ = nullptr;
  int64_t size_bytes_ = 0;
  Device device_ = Device::cpu;
  Source source_ = Source::pages;
  Tensor view_;
};

// How a GPU's memory is had that other GPUs reach directly: the library that connects them knows.
// `allocate` need not clear it, and throws OutOfGpuMemory.
struct PeerMemory {
  void* (*allocate)(int64_t size_bytes);
  void (*release)(void* memory);
};
// For buffers that are made from here on; until then they have memory like any other.
void set_peer_memory(const PeerMemory& memory);

}  // namespace lockstep
